"""Rewrites JSON schemas: relocates their references, and drops keywords that allow everything.

Only subschemas are rewritten. The contents of a constant, an enum, a default or an example are data, even if they look
like a schema. https://json-schema.org/draft/2020-12/json-schema-core#section-10
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_ONE = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_SOME = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"})

_ANNOTATIONS = frozenset(
    {"$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)
FORMATS = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "idn-email",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "time",
        "uri",
        "uri-reference",
        "uri-template",
        "uuid",
    }
)
"""Formats that JSON Schema defines (validation vocabulary, section 7.3). Others constrain nothing."""


def moved(schema: Any, place: str) -> Any:
    """Return `schema` with its references adjusted to its new place, a JSON pointer in the enclosing schema."""
    if not isinstance(schema, Mapping):
        return schema
    inner = _within(schema, lambda one: moved(one, place))
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        inner["$ref"] = place + reference[1:]
    return inner


def lean(schema: Any) -> Any:
    """Return `schema` without keywords that every value satisfies: grammars reject unknown keywords, even ineffective
    ones."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: value for key, value in _within(schema, lean).items() if not _says_nothing(key, value, schema)}


def _within(schema: Mapping[str, Any], rewrite: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a copy of `schema` with its direct subschemas rewritten."""

    def inner(key: str, value: Any) -> Any:
        if key in _SOME and isinstance(value, list):
            return [rewrite(one) for one in value]
        if key in _NAMED and isinstance(value, Mapping):
            return {name: rewrite(one) for name, one in value.items()}
        return rewrite(value) if key in _ONE else value

    return {key: inner(key, value) for key, value in schema.items()}


def _says_nothing(key: str, value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the keyword `key` of `schema` holds for every value."""
    match key:
        case "uniqueItems":
            return value is False
        case "propertyNames":
            return _allows_all(value) or (isinstance(value, Mapping) and _bare(value) == {"type": "string"})
        case "unevaluatedItems" | "unevaluatedProperties":
            return _allows_all(value)
        case "contains" | "minContains" | "maxContains":
            return "contains" not in schema or (schema.get("minContains") == 0 and "maxContains" not in schema)
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            return isinstance(value, Mapping) and all(one == [] or _allows_all(one) for one in value.values())
        case "not":
            return value is False
        case "if" | "then" | "else":
            return "if" not in schema or all(_allows_all(schema.get(one, True)) for one in ("then", "else"))
        case "format":
            return value not in FORMATS
        case _:
            return False


def _allows_all(schema: Any) -> bool:
    return schema is True or (isinstance(schema, Mapping) and not _bare(schema))


def _bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return `schema` without annotations."""
    return {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
