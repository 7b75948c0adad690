"""Validates a tool call's arguments, with error messages that a model can act on.

Validation is strict, with one exception: text that unambiguously is a number (`"12"`, `"-3.5"`) is converted if the
parameter only accepts numbers. `"1,234"` and `"12 km"` are not converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from midstream.core.errors import nearest
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


@dataclass(frozen=True)
class CheckedArguments:
    """`values` are passed to the function, `raw` are the arguments after coercion. Both are empty if there are
    `problems`."""

    problems: list[str]
    values: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)


def validate_arguments(tool: Tool[..., Any], arguments: Any) -> CheckedArguments:
    """Check `arguments`, of any form, against the parameters of `tool`."""
    if not isinstance(arguments, Mapping):
        return CheckedArguments([f"arguments must be an object with named values, not {_kind(arguments)}"])
    raw = dict(arguments)
    try:
        return CheckedArguments([], _values(tool, raw), raw)
    except ValidationError as error:
        coerced = _coerced(raw, error)
        problems = _explained(tool, error)
    except (TypeError, ValueError, RecursionError) as error:
        return CheckedArguments([f"arguments are not valid JSON: {error}"])
    if coerced is None:
        return CheckedArguments(problems)
    try:
        return CheckedArguments([], _values(tool, coerced), coerced)
    except ValidationError as error:
        return CheckedArguments(_explained(tool, error))


def _values(tool: Tool[..., Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    # Through JSON: strict mode then accepts a list for a tuple and text for a date, as JSON has no other types.
    model = tool.arguments_model.model_validate_json(json.dumps(raw))
    names = {alias: name for name, alias in _aliases(tool.arguments_model).items()}
    return {alias: getattr(model, name) for alias, name in names.items()}


def _aliases(model: type[BaseModel]) -> dict[str, str]:
    return {name: details.alias or name for name, details in model.model_fields.items()}


def _coerced(raw: Mapping[str, Any], error: ValidationError) -> dict[str, Any] | None:
    """Return `raw` with text and floats that can only mean a number converted; None if nothing changed."""
    result = dict(raw)
    for item in error.errors(include_url=False):
        if len(item["loc"]) != 1 or item["type"] not in ("int_type", "int_from_float", "float_type"):
            continue
        name, value = str(item["loc"][0]), item["input"]
        whole = item["type"] != "float_type"
        if isinstance(value, str) and (_INTEGER if whole else _DECIMAL).fullmatch(value):
            result[name] = int(value) if whole else float(value)
        elif whole and isinstance(value, float) and value.is_integer():
            result[name] = int(value)
    return result if result != raw or _types(result) != _types(raw) else None


def _types(values: Mapping[str, Any]) -> list[type]:
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
        return f"argument '{path}' must be {wanted}, not {_kind(item['input'])}"
    return f"argument '{path}': {item['msg']}"


def _kind(value: Any) -> str:
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
