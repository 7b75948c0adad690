"""Validates the arguments of a tool call, and describes problems so that a model can act on them.

Strict, with one exception: a string that can only be read as a number (`"12"`, `"-3.5"`) is converted where the
parameter takes nothing but a number. `"1,234"` and `"12 km"` are not.

Function tools are validated by their pydantic model, other tools by their JSON schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from midstream.core.errors import nearest
from midstream.core.toolsets import ToolSpec
from midstream.tools.declare import Tool

MAX_PROBLEMS = 5

_INTEGER = re.compile(r"\s*[+-]?\d{1,30}\s*")
_DECIMAL = re.compile(r"\s*[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,2})?\s*")
_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "none_required": "null",
}


class ValidArguments(dict[str, Any]):
    """Valid JSON arguments of a function tool, with the values for its function, so that none is validated twice."""

    def __init__(self, raw: Mapping[str, Any], values: Mapping[str, Any], model: type[BaseModel]) -> None:
        super().__init__(raw)
        self.python_values, self.model = values, model


@dataclass(frozen=True)
class CheckedArguments:
    """`values` are the arguments of the Python function, `raw` the JSON arguments after coercion. Both are empty when
    there are `problems`."""

    problems: list[str]
    values: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)


def validate_arguments(tool: ToolSpec, arguments: Any) -> CheckedArguments:
    """Validate `arguments`, which may be anything a model wrote, against the parameters of `tool`."""
    if not isinstance(arguments, Mapping):
        return CheckedArguments([f"arguments must be an object with named values, not {kind_of(arguments)}"])
    raw = dict(arguments)
    if not isinstance(tool, Tool):
        from midstream.tools.json_schema import validate_by_schema

        return validate_by_schema(tool, raw)
    if isinstance(arguments, ValidArguments) and arguments.model is tool.arguments_model:
        return CheckedArguments([], arguments.python_values, arguments)
    try:
        return _valid(tool, raw)
    except ValidationError as error:
        coerced = _coerced(raw, error)
        problems = _explained(tool, error)
    except (TypeError, ValueError, RecursionError) as error:
        return CheckedArguments([f"arguments are not valid JSON: {error}"])
    if coerced is None:
        return CheckedArguments(problems)
    try:
        return _valid(tool, coerced)
    except ValidationError as error:
        return CheckedArguments(_explained(tool, error))


def _valid(tool: Tool[..., Any], raw: Mapping[str, Any]) -> CheckedArguments:
    values = _values(tool, raw)
    return CheckedArguments([], values, ValidArguments(raw, values, tool.arguments_model))


def _values(tool: Tool[..., Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    # Through JSON: strict mode then accepts a list for a tuple and text for a date, as JSON has no other types.
    model = tool.arguments_model.model_validate_json(json.dumps(raw))
    names = {alias: name for name, alias in _aliases(tool.arguments_model).items()}
    return {alias: getattr(model, name) for alias, name in names.items()}


def _aliases(model: type[BaseModel]) -> dict[str, str]:
    return {name: details.alias or name for name, details in model.model_fields.items()}


def _coerced(raw: Mapping[str, Any], error: ValidationError) -> dict[str, Any] | None:
    """Return `raw` with strings and floats that can only mean a number converted; None if nothing was converted."""
    result = dict(raw)
    for item in error.errors(include_url=False):
        if len(item["loc"]) != 1 or item["type"] not in ("int_type", "int_from_float", "float_type"):
            continue
        name, value = str(item["loc"][0]), item["input"]
        result[name] = as_number(value, whole=item["type"] != "float_type")
    return result if result != raw or types_of(result) != types_of(raw) else None


def as_number(value: Any, *, whole: bool) -> Any:
    """Return `value` as a number if it can mean nothing else, else `value` itself."""
    if isinstance(value, str) and (_INTEGER if whole else _DECIMAL).fullmatch(value):
        return int(value) if whole else float(value)
    if whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def types_of(values: Mapping[str, Any]) -> list[type]:
    return [type(value) for value in values.values()]


def _explained(tool: Tool[..., Any], error: ValidationError) -> list[str]:
    items = error.errors(include_url=False)
    shown = [_explain(tool, item) for item in items[:MAX_PROBLEMS]]
    return shown if len(items) <= MAX_PROBLEMS else [*shown, f"and {len(items) - MAX_PROBLEMS} more"]


def _explain(tool: Tool[..., Any], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])[:60]
    names = list(_aliases(tool.arguments_model).values())
    if item["type"] == "missing":
        return f"argument '{path}' is missing"
    if item["type"] == "extra_forbidden":
        hint = nearest(path, names) if names else f"{tool.name} takes no arguments"
        return f"there is no argument '{path}'; {hint}"
    if wanted := _WANTED.get(item["type"]):
        return f"argument '{path}' must be {wanted}, not {kind_of(item['input'])}"
    return f"argument '{path}': {item['msg']}"


def kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}" if abs(value) < 1e15 else "a number"
        case str():
            return f"the string '{value[:40]}'"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
