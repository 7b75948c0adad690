"""Judges a workflow before it runs: types, names, reachability, and the worst case of its model calls.

The messages are meant for the author, who may be a model: what is wrong, on which line, and what to write instead.
`check_text` reads and judges; `check_workflow` judges an IR that may also come from a search.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.budget import most_model_calls
from midstream.workflows.expression_types import ExpressionTypes
from midstream.workflows.hybrid import read_workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators import OPERATORS
from midstream.workflows.operators.declare import Operator, OperatorSet, argument_problem
from midstream.workflows.problems import Code, Problem, WorkflowError, errors
from midstream.workflows.source import has_lone_surrogate
from midstream.workflows.value_types import ANY, NUMBER, ValueType, join, list_of

Types = dict[str, ValueType]
"""Types of the variables that have a value on every path to here."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A workflow as read, or None when it cannot be read, and everything found."""

    workflow: ir.Workflow | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether the workflow may run."""
        return self.workflow is not None and not errors(self.problems)


def check_text(
    text: str,
    operators: OperatorSet = OPERATORS,
    limits: WorkflowLimits | None = None,
    models: Collection[str] | None = None,
) -> Checked:
    """Read a workflow in either form and judge it. Never raises for what the text holds. `models` are the names of the
    executor models, as in `check_workflow`."""
    try:
        workflow = read_workflow(text, operators, limits)
    except WorkflowError as error:
        return Checked(None, error.problems)
    return Checked(workflow, tuple(check_workflow(workflow, operators, limits, models)))


def checked_workflow(
    text: str, operators: OperatorSet = OPERATORS, limits: WorkflowLimits | None = None
) -> ir.Workflow:
    """The workflow of a text. Raises `WorkflowError` when it must not run."""
    checked = check_text(text, operators, limits)
    if checked.workflow is None or not checked.ok:
        raise WorkflowError(errors(checked.problems))
    return checked.workflow


def check_workflow(
    workflow: ir.Workflow,
    operators: OperatorSet = OPERATORS,
    limits: WorkflowLimits | None = None,
    models: Collection[str] | None = None,
) -> list[Problem]:
    """Every problem of a workflow, in order of lines. `models` are the names an operator's `model=` may have; any name
    when None, for where it is not known yet what will run the workflow."""
    checker = _Checker(workflow, operators, limits or WorkflowLimits(), models)
    return sorted(checker.check(), key=lambda problem: (problem.line, problem.warning))


class _Checker:
    def __init__(
        self, workflow: ir.Workflow, operators: OperatorSet, limits: WorkflowLimits, models: Collection[str] | None
    ) -> None:
        self.workflow, self.operators, self.limits, self.models = workflow, operators, limits, models
        self.problems: list[Problem] = []
        self.read: set[str] = set()
        self._loops = 0
        self._returned: list[ValueType] = []
        self._types = ExpressionTypes(workflow, self._problem)

    def check(self) -> list[Problem]:
        self._instances()
        self._prompts()
        self._sizes()
        if errors(self.problems):
            return self.problems
        types: Types = {}
        goes_on = self._block(self.workflow.body, types)
        if goes_on:
            hint = 'end with return solution["response"], self.llm.get_usage_summary()["total_cost"]'
            line = max((one.line for one in ir.walk(self.workflow.body)), default=0)
            self._problem("no_answer", "the workflow can end without return", line, hint)
        self._unused()
        if not self.workflow.nodes:
            self._problem("no_answer", "the workflow calls no operator", 0, "await self.custom(input=problem)")
        if not errors(self.problems):
            most = most_model_calls(self.workflow, self.operators, self.limits)
            if most > self.limits.model_calls:
                message = f"up to {most} model calls in a run; at most {self.limits.model_calls} are allowed"
                self._problem("budget", message, 0, "use fewer rounds or fewer operators")
        return self.problems

    def _problem(self, code: Code, message: str, line: int = 0, hint: str = "", warning: bool = False) -> None:
        found = Problem(code, message, line, hint, warning)
        if found not in self.problems:
            self.problems.append(found)

    # Declarations

    def _instances(self) -> None:
        seen: set[str] = set()
        for one in self.workflow.instances:
            if one.name in seen:
                self._problem("structure", f"self.{one.name} is declared twice", one.line)
            seen.add(one.name)
            operator = self.operators.get(one.operator)
            if operator is None:
                hint = nearest(one.operator, self.operators)
                self._problem("unknown_operator", f"there is no operator '{one.operator}'", one.line, hint)
                continue
            if one.model and self.models is not None and one.model not in self.models:
                named = [name for name in self.models if name]
                hint = nearest(one.model, named) if named else "leave model out"
                self._problem("wrong_argument", f"there is no model '{one.model}'", one.line, hint)
            for name, value in one.settings:
                of = self._types.of(ir.Constant(value), {})
                if problem := argument_problem(operator, name, of):
                    self._problem("wrong_argument", problem, one.line, operator.signature)
        used = {node.instance for node in self.workflow.nodes}
        for one in self.workflow.instances:
            if one.name not in used:
                self._problem("unused", f"self.{one.name} is never called", one.line, "remove it", warning=True)

    def _prompts(self) -> None:
        prompts, limits = self.workflow.prompts, self.limits
        if len(prompts) > limits.prompts:
            self._problem("size", f"{len(prompts)} prompts; at most {limits.prompts} are allowed")
        for name, text in prompts.items():
            shown = name[:60]
            if not text.strip():
                self._problem("prompt", f"prompt '{shown}' is empty", 0, "remove it, or write what to do", warning=True)
            if len(text) > limits.prompt_chars:
                message = f"prompt '{shown}' has {len(text)} characters; at most {limits.prompt_chars} are allowed"
                self._problem("size", message)
            if has_lone_surrogate(text + name):
                self._problem("prompt", f"prompt '{shown!a}' holds a lone surrogate, which is not a character")
        referred = {one.name for one in ir.walk(self.workflow.body) if isinstance(one, ir.Prompt)}
        by_name = {one.name for one in self.workflow.instances} | {one.operator for one in self.workflow.instances}
        for name in prompts:
            if name not in referred | by_name:
                message = f"prompt '{name[:60]}' is used by no operator"
                self._problem("unused", message, 0, "name it like an operator of the workflow", warning=True)

    def _sizes(self) -> None:
        count, limits = len(self.workflow.nodes), self.limits
        if count > limits.nodes:
            self._problem("size", f"{count} operator calls; at most {limits.nodes} are allowed")

    # Statements

    def _block(self, body: Sequence[ir.Statement], types: Types) -> bool:
        """Judge statements, changing `types`; whether what follows them can be reached."""
        for place, one in enumerate(body):
            if not self._statement(one, types):
                if place + 1 < len(body):
                    following = body[place + 1].line
                    self._problem(
                        "unreachable", "this is never reached", following, "remove it, or what ends before it"
                    )
                return False
        return True

    def _statement(self, one: ir.Statement, types: Types) -> bool:
        match one:
            case ir.Invoke():
                self._assign(one.target, self._invoke(one, types), types)
            case ir.Parallel():
                records = [self._invoke(branch, types) for branch in one.branches]
                for branch, record in zip(one.branches, records, strict=True):
                    self._assign(branch.target, record, types)
                if one.target:
                    total = records[0]
                    for other in records[1:]:
                        total = join(total, other)
                    self._assign(one.target, list_of(total), types)
            case ir.InvokeEach():
                item = self._items(one.over, types, one.line)
                record = self._invoke(one.invoke, {**types, one.variable: item})
                self._assign(one.target, list_of(record), types)
            case ir.Assign():
                self._assign(one.target, self._typed(one.value, types), types)
            case ir.Append():
                self._append(one, types)
            case ir.Loop():
                self._loop(one, types)
            case ir.Branch():
                return self._branch(one, types)
            case ir.Break() | ir.Continue():
                if not self._loops:
                    self._problem("structure", "break and continue stand only in a loop", one.line)
                return False
            case ir.Return():
                of = self._typed(one.value, types)
                self._answer(of, one)
                return False
        return True

    def _assign(self, name: str, of: ValueType, types: Types) -> None:
        if name:
            types[name] = of

    def _invoke(self, node: ir.Invoke, types: Types) -> ValueType:
        instance = self.workflow.instance(node.instance)
        operator = self.operators.get(instance.operator) if instance is not None else None
        if instance is None or operator is None:
            names = [one.name for one in self.workflow.instances]
            hint = nearest(node.instance, names)
            self._problem("unknown_operator", f"self.{node.instance} is not declared", node.line, hint)
            return ANY
        for name, value in node.arguments:
            of = self._typed(value, types)
            if problem := argument_problem(operator, name, of):
                hint = _field_hint(value, of, operator, name)
                code = "wrong_argument" if operator.parameter(name) is None else "type"
                self._problem(code, problem, node.line, hint)
            elif name == operator.calls and not isinstance(value, ir.Constant):
                self._problem("unbounded_loop", f"argument '{name}' must be a number", node.line, f"{name}=3")
        given = {name for name, _ in (*node.arguments, *instance.settings)}
        for parameter in operator.parameters:
            if parameter.required and parameter.name not in given:
                message = f"{operator.name} needs the argument '{parameter.name}'"
                self._problem("wrong_argument", message, node.line, operator.signature)
        return operator.output

    def _append(self, one: ir.Append, types: Types) -> None:
        item, found = self._typed(one.value, types), types.get(one.target)
        if found is None:
            self._problem("unknown_name", f"'{one.target}' has no value here", one.line, f"{one.target} = [] before it")
        elif found.kind not in ("list", "any"):
            self._problem("type", f"'{one.target}' is {found}, not a list", one.line)
        else:
            known = found.item is not None and found.item != ANY
            types[one.target] = list_of(join(found.item, item) if known and found.item is not None else item)

    def _items(self, over: ir.Expression | ir.Times, types: Types, line: int) -> ValueType:
        """The type of a loop's variable."""
        if isinstance(over, ir.Times):
            if not 1 <= over.count <= self.limits.loop_count:
                most = self.limits.loop_count
                self._problem("unbounded_loop", f"a loop of {over.count} rounds", line, f"1 to {most} are allowed")
            return NUMBER
        of = self._typed(over, types)
        if of.kind == "any":
            return ANY
        if of.kind != "list" or of.item is None:
            self._problem("type", f"a loop goes over a list, not {of}", line, "for _ in range(3):")
            return ANY
        return of.item

    def _loop(self, one: ir.Loop, types: Types) -> None:
        item = self._items(one.over, types, one.line)
        inside = {**types, one.variable: item}
        self._loops += 1
        reads, found = set(self.read), list(self.problems)
        self._block(one.body, inside)
        # A second pass with the types after one round: a variable may change its type in the loop.
        merged = {name: join(of, inside.get(name, of)) for name, of in types.items()}
        if merged != types:
            self.problems, self.read = found, reads
            inside = {**merged, one.variable: item}
            self._block(one.body, inside)
            merged = {name: join(of, inside.get(name, of)) for name, of in merged.items()}
        self._loops -= 1
        types.update(merged)
        if isinstance(one.over, ir.Times):
            # The body runs at least once, up to the first statement that may leave it.
            types.update({name: of for name, of in inside.items() if name not in types and _certain(one.body, name)})

    def _branch(self, one: ir.Branch, types: Types) -> bool:
        self._typed(one.condition, types)
        if isinstance(one.condition, ir.Constant):
            self._problem("unreachable", "the condition never changes", one.line, "test a result, or remove the if")
        then, otherwise = dict(types), dict(types)
        after_then, after_otherwise = self._block(one.then, then), self._block(one.otherwise, otherwise)
        if after_then and after_otherwise:
            merged = {name: join(of, otherwise[name]) for name, of in then.items() if name in otherwise}
        else:
            merged = then if after_then else otherwise
        types.clear()
        types.update(merged)
        return after_then or after_otherwise

    def _answer(self, of: ValueType, one: ir.Return) -> None:
        if of.kind in ("record", "list"):
            hint = _record_hint(one.value, of) or "return text"
            self._problem("type", f"the answer is {of}, not text", one.line, hint)
        elif of.kind == "none":
            self._problem("no_answer", "the answer is None", one.line, "return an answer as text")

    def _typed(self, expression: ir.Expression, types: Types) -> ValueType:
        self.read |= {one.name for one in ir.walk(expression) if isinstance(one, ir.Variable)}
        return self._types.of(expression, types)

    def _unused(self) -> None:
        for one in ir.walk(self.workflow.body):
            if isinstance(one, ir.Invoke | ir.InvokeEach | ir.Parallel) and one.target and one.target not in self.read:
                message = f"the result '{one.target}' is never used"
                self._problem("unused", message, one.line, "use it, or remove the call", warning=True)


def _certain(body: Sequence[ir.Statement], name: str) -> bool:
    """Whether the first statements of a loop's body set `name` before anything can leave the round."""
    for one in body:
        if isinstance(one, ir.Break | ir.Continue | ir.Return | ir.Branch):
            return False
        targets = [getattr(one, "target", "")]
        if isinstance(one, ir.Parallel):
            targets += [branch.target for branch in one.branches]
        if name in targets:
            return True
    return False


def _record_hint(value: ir.Expression, of: ValueType) -> str:
    texts = [name for name, field in of.fields if field.kind == "text"]
    if of.kind == "record" and texts and isinstance(value, ir.Variable):
        return f'use {value.name}["{texts[0]}"]'
    return ""


def _field_hint(value: ir.Expression, of: ValueType, operator: Operator, name: str) -> str:
    """How to pass the text of a record where the record itself was passed."""
    parameter = operator.parameter(name)
    if parameter is None:
        return ""
    if parameter.type.kind == "text":
        return _record_hint(value, of)
    item = of.item
    if parameter.type.kind == "list" and of.kind == "list" and item is not None and item.kind == "record":
        texts = [key for key, field in item.fields if field.kind == "text"]
        if texts and isinstance(value, ir.Variable):
            return f'use [one["{texts[0]}"] for one in {value.name}]'
    if parameter.type.kind == "list" and of.kind == "text":
        return "put it in a list: [...]"
    return ""
