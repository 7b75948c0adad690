"""Checks of tools that are described by a JSON schema alone: of the schema, and of a call's arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from midstream.core.errors import ConfigError, nearest
from midstream.core.toolsets import ToolSpec
from midstream.tools.arguments import MAX_PROBLEMS, CheckedArguments, as_number, kind_of, types_of
from midstream.tools.declare import TOOL_NAME

MAX_PROBLEM_CHARS = 300
_TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def check_schema(tool: ToolSpec) -> None:
    """Raise `ConfigError` unless `tool` has a name a model can write and a valid JSON schema of an object."""
    if not TOOL_NAME.fullmatch(tool.name):
        raise ConfigError(f"'{tool.name}' cannot be the name of a tool", "use letters, digits, _ and -")
    if tool.parameters.get("type") != "object":
        raise ConfigError(
            f"tool '{tool.name}': its parameters are not a JSON schema of an object", 'give them "type": "object"'
        )
    schema = dict(tool.parameters)
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        where = f"tool '{tool.name}': its JSON schema is invalid at {error.json_path}"
        raise ConfigError(f"{where}: {error.message}") from None


def validate_by_schema(tool: ToolSpec, raw: dict[str, Any]) -> CheckedArguments:
    """Validate `raw` against the schema of `tool`, converting strings that can only mean the required number."""
    # A registry of our own: the default one would fetch a `$ref` from the network.
    validator = validator_for(tool.parameters, default=Draft202012Validator)(tool.parameters, registry=Registry())
    try:
        json.dumps(raw, allow_nan=False)
        errors = list(validator.iter_errors(raw))
        coerced = _coerced(raw, errors)
        if types_of(coerced) != types_of(raw):
            raw, errors = coerced, list(validator.iter_errors(coerced))
    except Unresolvable as error:
        return CheckedArguments([f"{tool.name} cannot be called: its schema refers to {error.ref}, which is not in it"])
    except (TypeError, ValueError, RecursionError) as error:
        return CheckedArguments([f"arguments are not valid JSON: {error}"])
    if not errors:
        return CheckedArguments([], raw, raw)
    problems = [problem for error in errors for problem in _explain(tool, error)]
    more = len(problems) - MAX_PROBLEMS
    return CheckedArguments(problems if more <= 0 else [*problems[:MAX_PROBLEMS], f"and {more} more"])


def _coerced(raw: Mapping[str, Any], errors: list[ValidationError]) -> dict[str, Any]:
    result = dict(raw)
    for error in errors:
        wanted: Any = error.validator_value
        if len(error.absolute_path) == 1 and error.validator == "type" and wanted in ("integer", "number"):
            name = str(error.absolute_path[0])
            result[name] = as_number(raw[name], whole=wanted == "integer")
    return result


def _explain(tool: ToolSpec, error: ValidationError) -> list[str]:
    path = ".".join(str(part) for part in error.absolute_path)[:60]
    wanted: Any = error.validator_value
    value: Any = error.instance
    if error.validator == "required":
        missing = next((name for name in wanted if name not in value and repr(name) in error.message), "")
        return [f"argument '{path}.{missing}' is missing" if path else f"argument '{missing}' is missing"]
    if error.validator == "additionalProperties" and not path:
        known = list(tool.parameters.get("properties", {}))
        hint = "" if known else f"{tool.name} takes no arguments"
        unknown = [name for name in value if name not in known]
        return [f"there is no argument '{name[:60]}'; {hint or nearest(name, known)}" for name in unknown]
    where = f"argument '{path}'" if path else "the arguments"
    if error.validator == "type" and str(wanted) in _TYPES:
        return [f"{where} must be {_TYPES[str(wanted)]}, not {kind_of(value)}"]
    if error.validator == "enum":
        return [f"{where} must be one of {', '.join(map(str, wanted))}"[:MAX_PROBLEM_CHARS]]
    return [f"{where}: {error.message}"[:MAX_PROBLEM_CHARS]]
