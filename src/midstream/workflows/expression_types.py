"""Types of expressions, given the types of the variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.functions import FUNCTIONS
from midstream.workflows.value_types import ANY, TEXT, ValueType, join, list_of, type_of_value

Report = Callable[..., None]
"""`report(code, message, line, hint)`."""


class ExpressionTypes:
    """Computes types and reports what does not fit. After a problem the type is unknown, so it is reported once."""

    def __init__(self, workflow: ir.Workflow, report: Report) -> None:
        self._workflow, self._report = workflow, report

    def of(self, expression: ir.Expression, types: Mapping[str, ValueType]) -> ValueType:
        line = expression.line
        match expression:
            case ir.Constant():
                return type_of_value(expression.value)
            case ir.Input():
                if expression.name not in self._workflow.inputs:
                    self._report("unknown_name", f"'{expression.name}' is not an input of __call__", line)
                return TEXT
            case ir.Prompt():
                if expression.default is None and expression.name not in self._workflow.prompts:
                    known = self._workflow.prompts
                    hint = nearest(expression.name, known) if known else f'add "{expression.name}" to prompts'
                    self._report("prompt", f"there is no prompt '{expression.name[:60]}'", line, hint)
                return TEXT
            case ir.Variable():
                return self._variable(expression, types)
            case ir.Field():
                return self._field(expression, types)
            case ir.Item():
                return self._item(expression, types)
            case ir.Template():
                for part in expression.parts:
                    of = self.of(part, types)
                    if of.kind in ("record", "list"):
                        hint = _part_hint(part, of)
                        self._report("type", f"{of} cannot stand in an f-string", line, hint)
                return TEXT
            case ir.ListOf():
                items = [self.of(item, types) for item in expression.items]
                total = items[0] if items else ANY
                for other in items[1:]:
                    total = join(total, other)
                return list_of(total)
            case ir.Function():
                return self._function(expression, types)
            case ir.Conditional():
                self.of(expression.condition, types)
                return join(self.of(expression.then, types), self.of(expression.otherwise, types))
            case ir.Collect():
                return self._collect(expression, types)

    def _variable(self, expression: ir.Variable, types: Mapping[str, ValueType]) -> ValueType:
        found = types.get(expression.name)
        if found is None:
            names = [*types, *self._workflow.inputs]
            hint = f"{nearest(expression.name, names)}; it must be assigned on every path before"
            self._report("unknown_name", f"'{expression.name}' has no value here", expression.line, hint)
            return ANY
        return found

    def _field(self, expression: ir.Field, types: Mapping[str, ValueType]) -> ValueType:
        of, line, key = self.of(expression.of, types), expression.line, expression.key
        if of.kind == "any":
            return ANY
        if of.kind != "record":
            hint = "use it without a key" if of.kind == "text" else ""
            self._report("type", f"{of} has no field '{key[:60]}'", line, hint)
            return ANY
        found = of.field(key)
        if found is None:
            hint = nearest(key[:60], [name for name, _ in of.fields])
            self._report("type", f"the result has no field '{key[:60]}'", line, hint)
            return ANY
        return found

    def _item(self, expression: ir.Item, types: Mapping[str, ValueType]) -> ValueType:
        of = self.of(expression.of, types)
        if of.kind == "list":
            return of.item or ANY
        if of.kind == "text":
            return TEXT
        if of.kind != "any":
            self._report("type", f"{of} has no item {expression.index}", expression.line)
        return ANY

    def _function(self, expression: ir.Function, types: Mapping[str, ValueType]) -> ValueType:
        arguments = [self.of(one, types) for one in expression.arguments]
        function = FUNCTIONS.get(expression.name)
        if function is None:
            hint = nearest(expression.name, FUNCTIONS)
            self._report("not_allowed", f"there is no function '{expression.name}'", expression.line, hint)
            return ANY
        result = function.result(arguments)
        if isinstance(result, str):
            hint = next(
                (
                    found
                    for one, of in zip(expression.arguments, arguments, strict=True)
                    if (found := _part_hint(one, of))
                ),
                "",
            )
            self._report("type", f"'{expression.name}' {result}", expression.line, hint)
            return ANY
        return result

    def _collect(self, expression: ir.Collect, types: Mapping[str, ValueType]) -> ValueType:
        over = self.of(expression.over, types)
        if over.kind not in ("list", "any"):
            self._report("type", f"a comprehension goes over a list, not {over}", expression.line)
        inside = {**types, expression.variable: over.item or ANY}
        if expression.condition is not None:
            self.of(expression.condition, inside)
        return list_of(self.of(expression.value, inside))


def _part_hint(part: ir.Expression, of: ValueType) -> str:
    texts = [name for name, field in of.fields if field.kind == "text"]
    if of.kind == "record" and texts and isinstance(part, ir.Variable):
        return f'use {part.name}["{texts[0]}"]'
    if of.kind == "list" and isinstance(part, ir.Variable):
        return f'use "\\n".join({part.name})' if of.item == TEXT else "take one item, or its texts"
    return "use str(...)" if of.kind == "number" else ""
