"""Reads the statements of a workflow's `__call__` from Python's syntax tree into the IR."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import Problem, WorkflowError
from midstream.workflows.read_expressions import ExpressionReader, is_self, line_of, refuse

OPERATOR_HINT = "declare it in __init__: self.{0} = operator.Custom(self.llm)"
_WHILE = "use for _ in range(3): and break"
_GATHER = "await asyncio.gather(self.a(...), self.b(...))"


class StatementReader:
    """Reads the body of `__call__`. Problems are collected in `problems`, so that all are found."""

    def __init__(
        self,
        operators: OperatorSet,
        limits: WorkflowLimits,
        instances: Mapping[str, ir.Instance],
        inputs: Sequence[str],
        problems: list[Problem],
    ) -> None:
        self.operators, self.limits, self.problems = operators, limits, problems
        self._instances, self._inputs = instances, inputs
        self._statements = self._hoisted = self._depth = 0
        self._names: set[str] = set()
        self._pending: dict[str, ast.expr] = {}
        self._expressions = ExpressionReader(inputs, limits.expression_depth)

    def body(self, node: ast.AsyncFunctionDef) -> tuple[ir.Statement, ...]:
        """The statements of the method."""
        self._node = node
        body = tuple(self._block(node.body))
        for name, pending in self._pending.items():
            hint = f"results = await asyncio.gather(*{name})"
            self.problems.append(
                Problem("structure", f"the calls in '{name}' are never awaited", line_of(pending), hint)
            )
        return body

    def _attempt(self, read: Callable[[], None]) -> None:
        attempt(read, self.problems)

    def _block(self, nodes: Sequence[ast.stmt]) -> list[ir.Statement]:
        if self._depth > self.limits.depth:
            hint = f"at most {self.limits.depth} levels"
            refuse(nodes[0], "loops and branches are nested too deeply", hint, "size")
        self._depth += 1
        block: list[ir.Statement] = []
        for node in nodes:
            self._statements += 1
            if self._statements > self.limits.statements:
                refuse(node, f"more than {self.limits.statements} statements", "write a shorter workflow", "size")
            self._attempt(lambda node=node: block.extend(self._statement(node)))
        self._depth -= 1
        return block

    def _statement(self, node: ast.stmt) -> list[ir.Statement]:
        before: list[ir.Statement] = []
        made = self._read_statement(node, lambda call: self._hoist(call, before))
        return [*before, *made]

    def _read_statement(self, node: ast.stmt, hoist: Callable[[ast.Call], str]) -> list[ir.Statement]:
        line, read = line_of(node), lambda value: self._expressions.read(value, hoist)
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                return []
            case ast.Assign(targets=[target], value=value):
                return self._assign(node, target, value, hoist)
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                return self._assign(node, target, value, hoist)
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=value):
                left = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), node)
                total = ast.copy_location(ast.BinOp(left=left, op=ast.Add(), right=value), node)
                return [ir.Assign(self._target(node, name), read(total), line)]
            case ast.Expr(value=ast.Await(value=ast.Call() as call)):
                return self._awaited(node, "", call)
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[item], keywords=[])
            ):
                return [ir.Append(name, read(item), line)]
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="extend"), args=[items], keywords=[])
            ):
                return [ir.Assign(name, ir.Function("+", (ir.Variable(name, line), read(items)), line), line)]
            case ast.If():
                condition = read(node.test)
                return [ir.Branch(condition, tuple(self._block(node.body)), tuple(self._block(node.orelse)), line)]
            case ast.For():
                return [self._for(node, hoist)]
            case ast.Break():
                return [ir.Break(line)]
            case ast.Continue():
                return [ir.Continue(line)]
            case ast.Return():
                return [ir.Return(self._returned(node, hoist), line)]
            case ast.While():
                refuse(node, "while may never end", _WHILE, "unbounded_loop")
            case ast.Try():
                refuse(node, "try is not allowed", "failed calls are retried by the runner")
            case _:
                refuse(node, f"{what(node)} is not allowed in a workflow")

    def _assign(
        self, node: ast.stmt, target: ast.expr, value: ast.expr, hoist: Callable[[ast.Call], str]
    ) -> list[ir.Statement]:
        line = line_of(node)
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Await) and isinstance(value.value, ast.Call):
            return self._gather_to(node, target, value.value)
        if not isinstance(target, ast.Name):
            refuse(node, "only a name can be assigned to", "x = ...")
        name = self._target(node, target.id)
        if isinstance(value, ast.Await) and isinstance(value.value, ast.Call):
            return self._awaited(node, name, value.value)
        if self._is_pending(value):
            self._pending[name] = value
            return []
        if isinstance(value, ast.ListComp) and isinstance(value.elt, ast.Await):
            return [self._each(value, value.elt.value, name, parallel=False)]
        return [ir.Assign(name, self._expressions.read(value, hoist), line)]

    def _awaited(self, node: ast.stmt, name: str, call: ast.Call) -> list[ir.Statement]:
        """`name = await self.op(...)`, or `await asyncio.gather(...)`."""
        if not _is_gather(call):
            return [self._invoke(call, name)]
        if len(call.args) == 1 and isinstance(call.args[0], ast.Starred):
            spread = call.args[0].value
            if isinstance(spread, ast.Name) and spread.id in self._pending:
                spread = self._pending.pop(spread.id)
            if isinstance(spread, ast.ListComp):
                return [self._each(spread, spread.elt, name, parallel=True)]
            if isinstance(spread, ast.List):
                return [ir.Parallel(name, self._branches(call, spread.elts), line_of(node))]
            refuse(node, "gather takes operator calls", _GATHER)
        return [ir.Parallel(name, self._branches(call, call.args), line_of(node))]

    def _gather_to(self, node: ast.stmt, target: ast.Tuple, call: ast.Call) -> list[ir.Statement]:
        names = [self._target(node, one.id) for one in target.elts if isinstance(one, ast.Name)]
        if not _is_gather(call) or len(names) != len(target.elts) or len(names) != len(call.args):
            refuse(
                node, "names and gathered calls do not match", "a, b = await asyncio.gather(self.x(...), self.y(...))"
            )
        branches = self._branches(call, call.args, names)
        return [ir.Parallel("", branches, line_of(node))]

    def _branches(
        self, call: ast.Call, arguments: Sequence[ast.expr], targets: Sequence[str] = ()
    ) -> tuple[ir.Invoke, ...]:
        if not arguments or call.keywords:
            refuse(call, "gather takes operator calls", _GATHER)
        branches: list[ir.Invoke] = []
        for place, one in enumerate(arguments):
            if not isinstance(one, ast.Call):
                refuse(call, "gather takes operator calls", _GATHER)
            branches.append(self._invoke(one, targets[place] if targets else ""))
        return tuple(branches)

    def _each(self, node: ast.ListComp, call: ast.expr, name: str, parallel: bool) -> ir.InvokeEach:
        only = node.generators[0]
        if len(node.generators) != 1 or only.ifs or only.is_async or not isinstance(only.target, ast.Name):
            refuse(node, "calls in a list are [self.op(...) for name in items]")
        if not isinstance(call, ast.Call):
            refuse(node, "gather takes operator calls", "await asyncio.gather(*[self.op(...) for _ in range(3)])")
        variable = self._target(node, only.target.id)
        return ir.InvokeEach(name, self._invoke(call, ""), variable, self._bound(only.iter), parallel, line_of(node))

    def _is_pending(self, value: ast.expr) -> bool:
        """Whether `value` is a list of operator calls that are not awaited yet."""
        if isinstance(value, ast.ListComp):
            return self._is_operator_call(value.elt)
        return isinstance(value, ast.List) and bool(value.elts) and all(map(self._is_operator_call, value.elts))

    def _is_operator_call(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_self(node.func.value)

    def _invoke(self, call: ast.Call, target: str, hoist: Callable[[ast.Call], str] | None = None) -> ir.Invoke:
        function = call.func
        if is_self(function) or (isinstance(function, ast.Attribute) and function.attr == "__call__"):
            refuse(call, "the workflow calls itself", "use a bounded loop", "recursion")
        if isinstance(function, ast.Name) and function.id == "Workflow":
            refuse(call, "the workflow calls itself", "use a bounded loop", "recursion")
        if not (isinstance(function, ast.Attribute) and is_self(function.value)):
            refuse(call, "only operators of self can be awaited", "await self.custom(input=problem)")
        name = function.attr
        instance = self._instances.get(name)
        if instance is None:
            hint = nearest(name, self._instances) if self._instances else OPERATOR_HINT.format(name)
            refuse(call, f"self.{name} is not declared in __init__", hint, "unknown_operator")
        parameters = [one.name for one in self.operators[instance.operator].parameters]
        arguments: dict[str, ir.Expression] = {}
        if len(call.args) > len(parameters):
            signature = self.operators[instance.operator].signature
            refuse(call, f"self.{name} has too many arguments", signature, "wrong_argument")
        for place, one in enumerate(call.args):
            if isinstance(one, ast.Starred):
                refuse(call, "* is not allowed in a call")
            arguments[parameters[place]] = self._expressions.read(one, hoist)
        for word in call.keywords:
            if word.arg is None:
                refuse(call, "** is not allowed in a call")
            if word.arg in arguments:
                refuse(call, f"argument '{word.arg}' is given twice", "", "wrong_argument")
            arguments[word.arg] = self._expressions.read(word.value, hoist)
        return ir.Invoke(target, name, tuple(arguments.items()), line=call.lineno)

    def _hoist(self, call: ast.Call, before: list[ir.Statement]) -> str:
        """Put an awaited call of an expression on a line of its own."""
        if _is_gather(call):
            refuse(call, "gather cannot stand in an expression", "results = await asyncio.gather(...)")
        invoke = self._invoke(call, "", lambda inner: self._hoist(inner, before))
        if not self._names:
            self._names = {one.id for one in ast.walk(self._node) if isinstance(one, ast.Name)}
        self._hoisted += 1
        while (name := f"{invoke.instance}_{self._hoisted}") in self._names:
            self._hoisted += 1
        self._names.add(name)
        before.append(ir.Invoke(name, invoke.instance, invoke.arguments, line=invoke.line))
        return name

    def _for(self, node: ast.For, hoist: Callable[[ast.Call], str]) -> ir.Loop:
        if node.orelse:
            refuse(node, "for has no else here", "use a variable")
        if not isinstance(node.target, ast.Name):
            refuse(node, "a loop has one variable", "for item in items:, or for i in range(3):")
        over = self._bound(node.iter, hoist)
        return ir.Loop(self._target(node, node.target.id), over, tuple(self._block(node.body)), node.lineno)

    def _bound(self, node: ast.expr, hoist: Callable[[ast.Call], str] | None = None) -> ir.Expression | ir.Times:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
            return self._expressions.read(node, hoist)
        count = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if not isinstance(count, ast.Constant) or not isinstance(count.value, int) or isinstance(count.value, bool):
            refuse(node, "the count of a loop must be a number", "for i in range(3):", "unbounded_loop")
        if not 1 <= count.value <= self.limits.loop_count:
            most = self.limits.loop_count
            refuse(node, f"a loop of {count.value} rounds", f"1 to {most} are allowed", "unbounded_loop")
        return ir.Times(count.value, line_of(node))

    def _returned(self, node: ast.Return, hoist: Callable[[ast.Call], str]) -> ir.Expression:
        value = node.value
        if isinstance(value, ast.Tuple):
            if len(value.elts) != 2 or not _is_cost(value.elts[1]):
                hint = 'return answer, self.llm.get_usage_summary()["total_cost"]'
                refuse(node, "return gives the answer, and at most the cost after it", hint, "structure")
            value = value.elts[0]
        if value is None:
            refuse(node, "return gives no answer", "return an answer as text", "no_answer")
        return self._expressions.read(value, hoist)

    def _target(self, node: ast.AST, name: str) -> str:
        if name in ("self", *self._inputs, "prompts", "prompt_custom", "asyncio", "operator"):
            refuse(node, f"'{name}' cannot be assigned to", "choose another name")
        if name.startswith("__"):
            refuse(node, f"'{name}' is not a name for a variable")
        return name


def attempt(read: Callable[[], None], problems: list[Problem]) -> None:
    """Read, and add a problem to `problems`; a problem of size ends the reading."""
    try:
        read()
    except WorkflowError as error:
        problems += error.problems
        if any(problem.code == "size" for problem in error.problems):
            raise WorkflowError(problems) from None


def _is_gather(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(value=ast.Name(id="asyncio"), attr="gather") | ast.Name(id="gather"):
            return True
        case _:
            return False


def _is_cost(node: ast.expr) -> bool:
    """Whether `node` is the cost that AFlow's workflows return: an expression that starts with `self.llm.`."""
    while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
        if isinstance(node, ast.Attribute) and is_self(node.value):
            return node.attr == "llm"
        node = node.func if isinstance(node, ast.Call) else node.value
    return False


def what(node: ast.AST) -> str:
    """The statement in words."""
    words = {
        "FunctionDef": "a function",
        "AsyncFunctionDef": "a function",
        "With": "with",
        "AsyncWith": "with",
        "AsyncFor": "async for",
        "Import": "an import",
        "ImportFrom": "an import",
        "ClassDef": "a class",
        "Expr": "an expression on its own",
        "AugAssign": "an assignment other than = and +=",
    }
    name = type(node).__name__
    return words.get(name, name.lower())
