"""Evaluates expressions of a workflow. Values are text, numbers, truth values, None, lists and records; every new text
and list is bounded before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midstream.workflows import ir
from midstream.workflows.functions import FUNCTIONS
from midstream.workflows.limits import WorkflowLimits

MAX_NUMBER = 10**15


class WorkflowFailed(Exception):
    """A workflow did something that has no meaning, such as taking an item of an empty list."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message)


class Evaluator:
    """Evaluates expressions with the values of variables. `inputs` and `prompts` are those of the run."""

    def __init__(self, inputs: Mapping[str, str], prompts: Mapping[str, str], limits: WorkflowLimits) -> None:
        self._inputs, self._prompts, self._limits = inputs, prompts, limits
        self._steps = 0

    def step(self, line: int, count: int = 1) -> None:
        """Count statements, or rounds of a comprehension. Raises `WorkflowFailed` when a run may do no more."""
        self._steps += count
        if self._steps > self._limits.steps:
            raise WorkflowFailed(
                f"more than {self._limits.steps} statements and rounds of comprehensions were executed", line
            )

    def value(self, of: ir.Expression, variables: Mapping[str, Any]) -> Any:
        """The value of an expression. Raises `WorkflowFailed`."""
        match of:
            case ir.Constant():
                return of.value
            case ir.Input():
                return self._inputs.get(of.name, "")
            case ir.Prompt():
                found = self._prompts.get(of.name, of.default)
                if found is None:
                    raise WorkflowFailed(f"there is no prompt '{of.name}'", of.line)
                return found
            case ir.Variable():
                if of.name not in variables:
                    raise WorkflowFailed(f"'{of.name}' has no value", of.line)
                return variables[of.name]
            case ir.Field():
                record = self.value(of.of, variables)
                if not isinstance(record, dict) or of.key not in record:
                    raise WorkflowFailed(f"there is no field '{of.key}'", of.line)
                return record[of.key]
            case ir.Item():
                items = self.value(of.of, variables)
                if not isinstance(items, list | str) or not -len(items) <= of.index < len(items):
                    raise WorkflowFailed(f"there is no item {of.index}", of.line)
                return items[of.index]
            case ir.Template():
                parts = [self.value(part, variables) for part in of.parts]
                if any(isinstance(part, list | dict) for part in parts):
                    raise WorkflowFailed("a list or record stands in an f-string", of.line)
                return self._joined([str(part) for part in parts], "", of.line)
            case ir.ListOf():
                return [self.value(item, variables) for item in of.items]
            case ir.Conditional():
                chosen = of.then if self.value(of.condition, variables) else of.otherwise
                return self.value(chosen, variables)
            case ir.Collect():
                return self._collect(of, variables)
            case ir.Function():
                return self._function(of, variables)

    def items(self, of: ir.Expression, variables: Mapping[str, Any]) -> list[Any]:
        """The items of a list that is looped over."""
        items = self.value(of, variables)
        if not isinstance(items, list):
            raise WorkflowFailed("a loop goes over a list", of.line)
        if len(items) > self._limits.loop_count:
            raise WorkflowFailed(
                f"a loop goes over {len(items)} items; at most {self._limits.loop_count} are allowed", of.line
            )
        return items

    def append(self, items: Any, value: Any, line: int) -> list[Any]:
        """`items` with `value` added."""
        if not isinstance(items, list):
            raise WorkflowFailed("only a list can be appended to", line)
        return self._bounded([*items, value], line)

    def _collect(self, of: ir.Collect, variables: Mapping[str, Any]) -> list[Any]:
        over = self.value(of.over, variables)
        if not isinstance(over, list):
            raise WorkflowFailed("a comprehension goes over a list", of.line)
        self.step(of.line, len(over))
        made: list[Any] = []
        for item in over:
            inside = {**variables, of.variable: item}
            if of.condition is None or self.value(of.condition, inside):
                made.append(self.value(of.value, inside))
        return self._bounded(made, of.line)

    def _function(self, of: ir.Function, variables: Mapping[str, Any]) -> Any:
        if of.name in ("and", "or"):
            value: Any = None
            for one in of.arguments:
                value = self.value(one, variables)
                if bool(value) is (of.name == "or"):
                    break
            return value
        values = [self.value(one, variables) for one in of.arguments]
        if of.name == "+" and all(isinstance(value, str) for value in values):
            return self._joined(values, "", of.line)
        if of.name == "join" and isinstance(values[0], str) and isinstance(values[1], list):
            if not all(isinstance(item, str) for item in values[1]):
                raise WorkflowFailed("join takes a list of text", of.line)
            return self._joined(values[1], values[0], of.line)
        if of.name == "replace" and all(isinstance(value, str) for value in values):
            text, old, new = values
            self._check_length(len(text) + text.count(old) * max(0, len(new) - len(old)), of.line)
        if of.name == "+" and all(isinstance(value, list) for value in values):
            self._bounded([item for value in values for item in value], of.line)
        try:
            result = FUNCTIONS[of.name].compute(*values)
        except (TypeError, ValueError, AttributeError) as error:
            raise WorkflowFailed(f"'{of.name}' failed: {error}", of.line) from None
        if isinstance(result, int | float) and not isinstance(result, bool) and abs(result) > MAX_NUMBER:
            raise WorkflowFailed("a number is too large", of.line)
        return self._bounded(result, of.line) if isinstance(result, list) else result

    def _joined(self, texts: list[str], separator: str, line: int) -> str:
        self._check_length(sum(map(len, texts)) + len(separator) * max(0, len(texts) - 1), line)
        return separator.join(texts)

    def _check_length(self, length: int, line: int) -> None:
        if length > self._limits.value_chars:
            raise WorkflowFailed(
                f"a text would have {length} characters; at most {self._limits.value_chars} are allowed", line
            )

    def _bounded(self, items: list[Any], line: int) -> list[Any]:
        if len(items) > self._limits.list_items:
            raise WorkflowFailed(
                f"a list would have {len(items)} items; at most {self._limits.list_items} are allowed", line
            )
        return items
