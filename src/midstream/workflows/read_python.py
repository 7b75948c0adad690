"""Reads workflow code, a restricted subset of Python, into the IR. The code is parsed and never executed.

It is the form of AFlow's `graph.py`: a class `Workflow` whose `__init__` declares operators and whose `__call__` wires
them. Prompts may stand beside the class: `PROMPTS = {...}`, or constants as in AFlow's `prompt.py`. Imports are read
for their names only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import Problem, WorkflowError, errors
from midstream.workflows.read_expressions import INPUTS, ExpressionReader, is_self, refuse
from midstream.workflows.read_statements import OPERATOR_HINT, StatementReader, attempt, what
from midstream.workflows.source import parse_statements

_ANNOTATION = (ast.Name, ast.Constant, ast.Subscript, ast.Tuple, ast.BinOp, ast.BitOr, ast.expr_context)
_HARMLESS_IMPORTS = re.compile(
    r"typing(\..*)?|asyncio|__future__|workspace(\..*)?|scripts(\..*)?|operator|midstream(\..*)?|metagpt(\..*)?"
)


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
        self._expressions = ExpressionReader(self._inputs, limits.expression_depth)

    def attempt(self, read: Callable[[], None]) -> None:
        """Read on after a problem, so that all are found."""
        attempt(read, self.problems)

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
                refuse(node, f"{what(node)} cannot stand outside of class Workflow", "", "structure")

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
                _plain_signature(node)
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
                refuse(node, f"{what(node)} cannot stand in class Workflow", "", "structure")

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
            refuse(node, f"self.{name} is not an operator", OPERATOR_HINT.format(name), "structure")

    def _instance(self, name: str, call: ast.Call) -> None:
        match call.func:
            case ast.Attribute(value=ast.Name(id="operator" | "operators"), attr=operator):
                pass
            case ast.Name(id=operator):
                pass
            case _:
                refuse(call, f"self.{name} is not an operator", OPERATOR_HINT.format(name), "structure")
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
        _plain_signature(node)
        names = [one.arg for one in (*arguments.args, *arguments.kwonlyargs)]
        if names[:2] != ["self", "problem"] or any(name not in INPUTS for name in names[1:]):
            hint = "async def __call__(self, problem: str, entry_point: str = None):"
            refuse(node, "__call__ takes self, problem and for code problems entry_point", hint, "structure")
        self._inputs = tuple(names[1:])
        reader = StatementReader(self.operators, self.limits, self._instances, self._inputs, self.problems)
        self._body = reader.body(node)


def _plain_signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Refuse defaults and annotations that would compute something."""
    arguments = node.args
    given = (*arguments.args, *arguments.kwonlyargs)
    parts = [*arguments.defaults, *arguments.kw_defaults, *(one.annotation for one in given), node.returns]
    for part in parts:
        if part is not None and not all(isinstance(one, _ANNOTATION) for one in ast.walk(part)):
            refuse(part, "an annotation or default computes something", "write problem: str", "structure")


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
