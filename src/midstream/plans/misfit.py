"""What is wrong with a value by a JSON schema. Schemas come from plans and handlers: nothing they name is fetched."""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, UnknownType, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable


def misfit(value: Any, schema: dict[str, Any]) -> str:
    """What is wrong with `value` by a JSON schema; empty when it fits."""
    if problem := schema_problem(schema):
        return problem
    try:
        error = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(value))
    except (Unresolvable, UnknownType, RecursionError, re.error) as broken:
        return f"its schema is not valid: {broken}"
    return "" if error is None else f"{error.json_path}: {error.message}"


def schema_problem(schema: dict[str, Any]) -> str:
    """What is wrong with a JSON schema; empty when it is one."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as broken:
        return f"its schema is not valid: {broken.message}"
    for ref in _refs(schema):
        if not isinstance(ref, str) or not ref.startswith("#"):
            return f"its schema refers to '{ref}': only parts of the schema itself ('#/$defs/...') can be used"
    return ""


def _refs(schema: Any) -> list[Any]:
    waiting, found = [schema], list[Any]()
    while waiting:
        one: Any = waiting.pop()
        if isinstance(one, dict):
            found.extend(one[name] for name in ("$ref", "$dynamicRef") if isinstance(one.get(name), str))
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return found
