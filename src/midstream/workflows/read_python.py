"""Reads workflow code, a restricted subset of Python, into the IR. The code is parsed and never executed.

It is the form of AFlow's `graph.py`: a class `Workflow` whose `__init__` declares operators and whose `__call__` wires
them. Prompts may stand beside the class: `PROMPTS = {...}`, or constants as in AFlow's `prompt.py`. Imports are read
for their names only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import Problem, WorkflowError, errors
from midstream.workflows.read_expressions import INPUTS, ExpressionReader, is_self, line_of, refuse
from midstream.workflows.source import parse_statements

_HARMLESS_IMPORTS = re.compile(
    r"typing(\..*)?|asyncio|__future__|workspace(\..*)?|scripts(\..*)?|operator|midstream(\..*)?|metagpt(\..*)?"
)
_WHILE = "use for _ in range(3): and break"
_OPERATOR_HINT = "declare it in __init__: self.{0} = operator.Custom(self.llm)"


def read_python(
    source: str,
    operators: OperatorSet,
    limits: WorkflowLimits | None = None,
    prompts: Mapping[str, str] | None = None,
) -> ir.Workflow:
    """Read plain code. `prompts` are added to those beside the class. Raises `WorkflowError` with every problem."""
    limits = limits or WorkflowLimits()
    reader = _Reader(operators, limits)
    most = limits.code_chars if prompts is not None else limits.text_chars
    for statement in parse_statements(source.replace("\r\n", "\n"), most):
        reader.attempt(lambda statement=statement: reader.top_level(statement))
    return reader.finished({**reader.prompts, **(prompts or {})})


def read_prompts(source: str, limits: WorkflowLimits | None = None) -> dict[str, str]:
    """Read a module of prompt constants, as AFlow's `prompt.py` is: `SOLVE = "..."`. Raises `WorkflowError`."""
    reader = _Reader(OperatorSet([]), limits or WorkflowLimits())
    for statement in parse_statements(source.replace("\r\n", "\n"), reader.limits.text_chars):
        if not isinstance(statement, ast.Assign | ast.Expr | ast.AnnAssign):
            refuse(statement, "a module of prompts holds only NAME = text", "", "prompt")
        reader.top_level(statement)
    return reader.prompts


class _Reader:
    def __init__(self, operators: OperatorSet, limits: WorkflowLimits) -> None:
        self.operators, self.limits = operators, limits
        self.problems: list[Problem] = []
        self.prompts: dict[str, str] = {}
        self._instances: dict[str, ir.Instance] = {}
        self._inputs: tuple[str, ...] = ("problem",)
        self._body: tuple[ir.Statement, ...] | None = None
        self._class_line = 0
        self._statements = self._hoisted = self._depth = 0
        self._names: set[str] = set()
        self._pending: dict[str, ast.expr] = {}
        self._expressions = ExpressionReader(self._inputs, limits.expression_depth)

    def attempt(self, read: Callable[[], None]) -> None:
        """Read on after a problem, so that all are found."""
        try:
            read()
        except WorkflowError as error:
            self.problems += error.problems
            if any(problem.code == "size" for problem in error.problems):
                raise WorkflowError(self.problems) from None

    def finished(self, prompts: Mapping[str, str]) -> ir.Workflow:
        if not self._class_line and not errors(self.problems):
            self.problems.append(Problem("structure", "there is no class Workflow", 0, "write class Workflow: ..."))
        elif self._body is None and not errors(self.problems):
            message = "class Workflow has no method __call__"
            self.problems.append(
                Problem("structure", message, self._class_line, "write async def __call__(self, problem: str): ...")
            )
        if self.problems or self._body is None:
            raise WorkflowError(self.problems)
        return ir.Workflow(tuple(self._instances.values()), self._body, prompts, self._inputs)

    # The module

    def top_level(self, node: ast.stmt) -> None:
        match node:
            case ast.ClassDef(name="Workflow") if not self._class_line:
                self._class_line = node.lineno
                self._class(node)
            case ast.Import() | ast.ImportFrom():
                _import(node)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                self.prompts[name] = text
            case ast.Assign(targets=[ast.Name(id="PROMPTS" | "prompts")], value=ast.Dict() as value):
                self.prompts |= _prompt_mapping(value)
            case ast.Assign(targets=[ast.Name(id="DatasetType")]) | ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.ClassDef():
                refuse(node, f"class {node.name} is not read", "the only class is Workflow", "structure")
            case _:
                refuse(node, f"{_what(node)} cannot stand outside of class Workflow", "", "structure")

    def _class(self, node: ast.ClassDef) -> None:
        if node.bases or node.keywords or node.decorator_list:
            refuse(node, "class Workflow has no base classes and no decorators", "write class Workflow:", "structure")
        # `__init__` first: `__call__` uses what it declares.
        members = sorted(node.body, key=lambda one: getattr(one, "name", "") == "__call__")
        for member in members:
            self.attempt(lambda member=member: self._member(member))

    def _member(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef(name="__init__"):
                if node.decorator_list:
                    refuse(node, "decorators are not allowed")
                for statement in node.body:
                    self.attempt(lambda statement=statement: self._declaration(statement))
            case ast.AsyncFunctionDef(name="__call__") if self._body is None:
                self._call_method(node)
            case ast.FunctionDef(name="__call__"):
                refuse(node, "__call__ is not async", "write async def __call__(self, problem: str):", "structure")
            case ast.Assign(targets=[ast.Name(id="prompts")], value=ast.Dict() as value):
                self.prompts |= _prompt_mapping(value)
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                pass
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                hint = "write everything in __call__"
                refuse(node, f"method {node.name} is not allowed besides __init__ and __call__", hint, "structure")
            case _:
                refuse(node, f"{_what(node)} cannot stand in class Workflow", "", "structure")

    def _declaration(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Attribute(value=ast.Name(id="self"), attr=name), value=ast.expr() as value):
                pass
            case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
                return
            case _:
                refuse(node, "__init__ only declares operators", "self.custom = operator.Custom(self.llm)", "structure")
        if isinstance(value, ast.Dict) and name == "prompts":
            self.prompts |= _prompt_mapping(value)
        elif name == "llm":
            if not isinstance(value, ast.Name) and not (
                isinstance(value, ast.Call) and getattr(value.func, "id", "") == "create_llm_instance"
            ):
                refuse(node, "self.llm is create_llm_instance(llm_config)")
        elif isinstance(value, ast.Call):
            self._instance(name, value)
        elif not isinstance(value, ast.Name) or name != value.id:
            refuse(node, f"self.{name} is not an operator", _OPERATOR_HINT.format(name), "structure")

    def _instance(self, name: str, call: ast.Call) -> None:
        match call.func:
            case ast.Attribute(value=ast.Name(id="operator" | "operators"), attr=operator):
                pass
            case ast.Name(id=operator):
                pass
            case _:
                refuse(call, f"self.{name} is not an operator", _OPERATOR_HINT.format(name), "structure")
        if operator not in self.operators:
            hint = f"{nearest(operator, self.operators)}"
            refuse(call, f"there is no operator '{operator}'", hint, "unknown_operator")
        if name in self._instances or name in ("llm", "prompts", "name", "dataset"):
            refuse(call, f"self.{name} is declared twice or reserved", "choose another name", "structure")
        if len(call.args) > 1 or any(not _is_model(one) for one in call.args):
            refuse(call, f"operator {operator} is created with self.llm", f"operator.{operator}(self.llm)")
        settings: list[tuple[str, ir.Scalar]] = []
        model = ""
        for word in call.keywords:
            value = self._expressions.read(word.value) if not _is_model(word.value) else None
            if word.arg == "llm" and value is None:
                continue
            if word.arg is None or not isinstance(value, ir.Constant):
                refuse(call, "settings of an operator are constants", f"operator.{operator}(self.llm, vote_count=3)")
            if word.arg == "model":
                model = str(value.value)
            elif word.arg != "name":
                settings.append((word.arg, value.value))
        self._instances[name] = ir.Instance(name, operator, tuple(settings), model, call.lineno)

    def _call_method(self, node: ast.AsyncFunctionDef) -> None:
        arguments = node.args
        if node.decorator_list or arguments.vararg or arguments.kwarg or arguments.posonlyargs:
            refuse(node, "__call__ has plain arguments only", "async def __call__(self, problem: str):", "structure")
        names = [one.arg for one in (*arguments.args, *arguments.kwonlyargs)]
        if names[:2] != ["self", "problem"] or any(name not in INPUTS for name in names[1:]):
            hint = "async def __call__(self, problem: str, entry_point: str = None):"
            refuse(node, "__call__ takes self, problem and for code problems entry_point", hint, "structure")
        self._inputs = tuple(names[1:])
        self._expressions.inputs = self._inputs
        self._names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        self._body = tuple(self._block(node.body))
        for name, pending in self._pending.items():
            hint = f"results = await asyncio.gather(*{name})"
            self.problems.append(Problem("structure", f"the calls in '{name}' are never awaited", line_of(pending), hint))

    # Statements

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
            self.attempt(lambda node=node: block.extend(self._statement(node)))
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
                refuse(node, f"{_what(node)} is not allowed in a workflow")

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
            refuse(node, "gather takes operator calls", "await asyncio.gather(self.a(...), self.b(...))")
        return [ir.Parallel(name, self._branches(call, call.args), line_of(node))]

    def _gather_to(self, node: ast.stmt, target: ast.Tuple, call: ast.Call) -> list[ir.Statement]:
        names = [self._target(node, one.id) for one in target.elts if isinstance(one, ast.Name)]
        if not _is_gather(call) or len(names) != len(target.elts) or len(names) != len(call.args):
            refuse(node, "names and gathered calls do not match", "a, b = await asyncio.gather(self.x(...), self.y(...))")
        branches = self._branches(call, call.args, names)
        return [ir.Parallel("", branches, line_of(node))]

    def _branches(
        self, call: ast.Call, arguments: Sequence[ast.expr], targets: Sequence[str] = ()
    ) -> tuple[ir.Invoke, ...]:
        if not arguments or call.keywords:
            refuse(call, "gather takes operator calls", "await asyncio.gather(self.a(...), self.b(...))")
        branches: list[ir.Invoke] = []
        for place, one in enumerate(arguments):
            if not isinstance(one, ast.Call):
                refuse(call, "gather takes operator calls", "await asyncio.gather(self.a(...), self.b(...))")
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
            hint = nearest(name, self._instances) if self._instances else _OPERATOR_HINT.format(name)
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

    def _bound(
        self, node: ast.expr, hoist: Callable[[ast.Call], str] | None = None
    ) -> ir.Expression | ir.Times:
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


def _import(node: ast.Import | ast.ImportFrom) -> None:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
    for name in names:
        if not _HARMLESS_IMPORTS.fullmatch(name):
            refuse(node, f"import of '{name}' is not allowed", "a workflow uses only operators; remove the import")


def _prompt_mapping(node: ast.Dict) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(value, ast.Constant)) or not (
            isinstance(key.value, str) and isinstance(value.value, str)
        ):
            refuse(key or node, "prompts are text by name", 'PROMPTS = {"SOLVE": "..."}', "prompt")
        found[key.value] = value.value
    return found


def _is_model(node: ast.expr) -> bool:
    """Whether `node` is `self.llm` or `llm`."""
    if isinstance(node, ast.Attribute):
        return is_self(node.value) and node.attr == "llm"
    return isinstance(node, ast.Name) and node.id in ("llm", "model", "llm_config")


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


def _what(node: ast.AST) -> str:
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


