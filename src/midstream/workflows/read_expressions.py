"""Reads the expressions of workflow code from Python's syntax tree into the IR.

An `await self.operator(...)` inside an expression becomes a node of its own before the statement, as long as Python
would always evaluate it there.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.functions import FUNCTIONS
from midstream.workflows.problems import Code, Problem, WorkflowError
from midstream.workflows.source import has_lone_surrogate

MAX_NUMBER = 1_000_000_000
INPUTS = ("problem", "entry_point")
NOT_IN_TEMPLATE = re.compile(r"[\"'\\{}#\n]")
_OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "==",
    ast.IsNot: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.And: "and",
    ast.Or: "or",
}
_CALLS = tuple(one.name for one in FUNCTIONS.values() if one.written == "call")
_METHODS = tuple(one.name for one in FUNCTIONS.values() if one.written == "method")


def refuse(node: ast.AST | int, message: str, hint: str = "", code: Code = "not_allowed") -> NoReturn:
    """Raise the problem of one place in the code."""
    line = node if isinstance(node, int) else getattr(node, "lineno", 0)
    raise WorkflowError([Problem(code, message, line, hint)])


def line_of(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


Hoist = Callable[[ast.Call], str]
"""Makes a node of an awaited operator call, and returns the variable that receives its record."""


class ExpressionReader:
    """Reads expressions. `hoist` is None where an awaited call may not stand. `inputs` are the names of the workflow's
    inputs."""

    def __init__(self, inputs: Sequence[str], most_depth: int) -> None:
        self.inputs = inputs
        self._most_depth = most_depth
        self._depth = 0
        self._hoist: Hoist | None = None

    def read(self, node: ast.expr, hoist: Hoist | None = None) -> ir.Expression:
        """The expression at `node`. Raises `WorkflowError`."""
        before, self._hoist = self._hoist, hoist
        try:
            return self._read(node)
        finally:
            self._hoist = before

    def _without_hoist(self, node: ast.expr) -> ir.Expression:
        return self.read(node, None)

    def _read(self, node: ast.expr) -> ir.Expression:
        self._depth += 1
        try:
            if self._depth > self._most_depth:
                refuse(node, f"the expression nests more than {self._most_depth} deep", "use variables", "size")
            return self._dispatch(node)
        finally:
            self._depth -= 1

    def _dispatch(self, node: ast.expr) -> ir.Expression:
        line = line_of(node)
        match node:
            case ast.Constant():
                return ir.Constant(_constant(node), line)
            case ast.Name(id=name):
                return ir.Input(name, line) if name in self.inputs else ir.Variable(name, line)
            case ast.JoinedStr():
                return self._template(node)
            case ast.Attribute(value=ast.Name(id="prompt_custom" | "prompts"), attr=name):
                return ir.Prompt(name, None, line)
            case ast.Subscript():
                return self._subscript(node)
            case ast.List():
                return ir.ListOf(tuple(map(self._read, node.elts)), line)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return ir.Constant(-_number(node, value), line)
            case ast.UnaryOp(op=ast.Not()):
                return ir.Function("not", (self._read(node.operand),), line)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return self._infix(node)
            case ast.BoolOp():
                first, *others = node.values
                operands = (self._read(first), *map(self._without_hoist, others))
                return _flat(_OPERATORS[type(node.op)], operands, line)
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp():
                condition = self._read(node.test)
                return ir.Conditional(condition, self._without_hoist(node.body), self._without_hoist(node.orelse), line)
            case ast.ListComp():
                return self._collect(node)
            case ast.Call():
                return self._call(node)
            case ast.Await(value=ast.Call() as call):
                if self._hoist is None:
                    refuse(node, "an operator cannot be called here", "call it on a line of its own: x = await ...")
                return ir.Variable(self._hoist(call), line)
            case ast.Attribute():
                if is_self(node.value):
                    refuse(node, f"self.{node.attr} is not a value", "operators are called: await self.name(...)")
                refuse(node, f"attribute '.{node.attr}' cannot be read", 'a field is read as result["response"]')
            case ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                refuse(node, "only list comprehensions are allowed", "write [... for x in items]")
            case ast.Dict() | ast.Set() | ast.Tuple():
                refuse(node, f"a {type(node).__name__.lower()} cannot be made here", "use text, numbers and lists")
            case ast.Lambda():
                refuse(node, "lambda is not allowed", "call an operator, or use plain expressions")
            case _:
                refuse(node, f"{_words(node)} is not allowed in a workflow")

    def _template(self, node: ast.JoinedStr) -> ir.Expression:
        parts: list[ir.Expression] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                if part.format_spec is not None or part.conversion not in (-1, ord("s")):
                    refuse(node, "an f-string has a format or a conversion", "write {name} alone")
                read = self._read(part.value)
                if any(
                    isinstance(one, ir.Constant | ir.Prompt | ir.Template) and _quoted(one) for one in ir.walk(read)
                ):
                    refuse(node, "an f-string holds quotes or braces in an expression", "put it in a variable first")
                parts.append(read)
            else:
                parts.append(self._read(part))
        return ir.Template(tuple(parts), line_of(node))

    def _subscript(self, node: ast.Subscript) -> ir.Expression:
        line, key = line_of(node), node.slice
        if is_prompts(node.value):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                refuse(node, "a prompt is named by text", 'write self.prompts["NAME"]')
            return ir.Prompt(key.value, None, line)
        of = self._read(node.value)
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return ir.Field(of, key.value, line)
        index = self._read(key) if isinstance(key, ast.Constant | ast.UnaryOp) else None
        if isinstance(index, ir.Constant) and isinstance(index.value, int) and not isinstance(index.value, bool):
            return ir.Item(of, index.value, line)
        refuse(node, "an index must be a field's name in quotes or a whole number", 'x["response"], or items[0]')

    def _infix(self, node: ast.BinOp) -> ir.Expression:
        """A chain of the same operator is read iteratively, so that long sums do not count as depth."""
        name, operands, left = _OPERATORS[type(node.op)], [node.right], node.left
        while name == "+" and isinstance(left, ast.BinOp) and isinstance(left.op, ast.Add):
            operands.append(left.right)
            left = left.left
        read = [self._read(one) for one in (left, *reversed(operands))]
        return _flat(name, tuple(read), line_of(node))

    def _compare(self, node: ast.Compare) -> ir.Expression:
        if len(node.ops) != 1:
            refuse(node, "comparisons cannot be chained", "join two with and")
        op, right = node.ops[0], node.comparators[0]
        if isinstance(op, ast.Is | ast.IsNot) and not (
            isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
        ):
            refuse(node, "is compares only with None, True and False", "use ==")
        return ir.Function(_OPERATORS[type(op)], (self._read(node.left), self._read(right)), line_of(node))

    def _collect(self, node: ast.ListComp) -> ir.Expression:
        if len(node.generators) != 1:
            refuse(node, "a list comprehension has one for", "use a loop for more")
        only = node.generators[0]
        if only.is_async or not isinstance(only.target, ast.Name) or len(only.ifs) > 1:
            refuse(node, "a list comprehension is [value for name in items if condition]")
        over = self._read(only.iter)
        condition = self._without_hoist(only.ifs[0]) if only.ifs else None
        return ir.Collect(self._without_hoist(node.elt), only.target.id, over, condition, line_of(node))

    def _call(self, node: ast.Call) -> ir.Expression:
        line, function = line_of(node), node.func
        if any(isinstance(one, ast.Starred) for one in node.args) or any(word.arg is None for word in node.keywords):
            refuse(node, "* and ** are not allowed in a call")
        if isinstance(function, ast.Attribute) and is_self(function.value):
            hint = f"write await self.{function.attr}(...)"
            refuse(node, f"self.{function.attr}(...) is not awaited", hint, "structure")
        if node.keywords:
            refuse(node, "this call takes no named arguments")
        if isinstance(function, ast.Name):
            if function.id not in _CALLS:
                if function.id == "range":
                    refuse(node, "range stands only in a loop", "for _ in range(3):")
                refuse(node, f"{function.id}() is not allowed", f"functions are {', '.join(_CALLS)}")
            return self._function(node, function.id, list(node.args))
        if not isinstance(function, ast.Attribute):
            refuse(node, "only operators and functions can be called")
        if function.attr == "get" and is_prompts(function.value):
            return _prompt(node)
        if function.attr == "get" and 1 <= len(node.args) <= 2:
            key = node.args[0]
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                return ir.Field(self._read(function.value), key.value, line)
        if function.attr not in _METHODS:
            refuse(node, f".{function.attr}() is not allowed", nearest(function.attr, _METHODS))
        return self._function(node, function.attr, [function.value, *node.args])

    def _function(self, node: ast.Call, name: str, arguments: list[ast.expr]) -> ir.Expression:
        fewest, most = FUNCTIONS[name].arity
        if not fewest <= len(arguments) <= most:
            refuse(node, f"{name}() has the wrong number of arguments", "", "wrong_argument")
        return ir.Function(name, tuple(map(self._read, arguments)), line_of(node))


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def is_prompts(node: ast.AST) -> bool:
    """Whether `node` is `self.prompts`, `prompts` or `prompt_custom`."""
    if isinstance(node, ast.Attribute):
        return is_self(node.value) and node.attr == "prompts"
    return isinstance(node, ast.Name) and node.id in ("prompts", "prompt_custom", "PROMPTS")


def _prompt(node: ast.Call) -> ir.Prompt:
    values = [one.value if isinstance(one, ast.Constant) else 0 for one in node.args]
    if not 1 <= len(values) <= 2 or not all(isinstance(one, str) for one in values):
        refuse(node, "a prompt is named by text", 'write self.prompts.get("NAME", "default")')
    return ir.Prompt(str(values[0]), str(values[1]) if len(values) == 2 else None, line_of(node))


def _constant(node: ast.Constant) -> ir.Scalar:
    value = node.value
    if isinstance(value, str):
        if has_lone_surrogate(value):
            refuse(node, "text holds a lone surrogate, which is not a character", "remove it")
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(node, value)
    refuse(node, f"a constant of type {type(value).__name__} is not allowed", "use text, numbers, True, False or None")


def _number(node: ast.AST, value: float) -> int | float:
    if isinstance(value, bool):
        refuse(node, "a minus sign before a truth value")
    if not math.isfinite(value) or abs(value) > MAX_NUMBER:
        refuse(node, f"a number is larger than {MAX_NUMBER}")
    return value


def _flat(name: str, operands: tuple[ir.Expression, ...], line: int) -> ir.Function:
    """Nested `+`, `and` and `or` are one function of all operands."""
    if name not in ("+", "and", "or"):
        return ir.Function(name, operands, line)
    flat: list[ir.Expression] = []
    for one in operands:
        flat += one.arguments if isinstance(one, ir.Function) and one.name == name else (one,)
    most = FUNCTIONS[name].arity[1]
    if len(flat) > most:
        refuse(line, f"more than {most} operands of {name}", "use variables", "size")
    return ir.Function(name, tuple(flat), line)


def _quoted(node: ir.Constant | ir.Prompt | ir.Template) -> bool:
    """Whether an expression cannot stand inside an f-string of Python 3.11."""
    if isinstance(node, ir.Template):
        return True
    texts = [node.value] if isinstance(node, ir.Constant) else [node.name, node.default]
    return any(isinstance(text, str) and NOT_IN_TEMPLATE.search(text) is not None for text in texts)


def _words(node: ast.AST) -> str:
    """`NamedExpr` as `a named expr`."""
    name = re.sub(r"(?<!^)(?=[A-Z])", " ", type(node).__name__).lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
