"""Converts arguments written as bare text according to their declared type.

A string is unchanged; anything else is parsed as JSON if that fits the declaration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from midstream.core.errors import Unsupported
from midstream.engines.formats import grammar
from midstream.engines.formats.parsing import loads

_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def typed(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """Return `text` as a value of a type that `schema` allows; `text` itself if it declares none or none fits."""
    kinds = json_types(schema, root)
    if kinds <= {"string"}:
        return text
    word = text.strip()
    if "boolean" in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if word.lower() == "null" and "null" in kinds:
        return None
    value = loads(word)
    fits = {_KINDS.get(type(value), "null"), "number" if isinstance(value, int) else ""} & kinds
    return value if value is not None and fits and not isinstance(value, str) else text


def json_types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """Return the JSON types that `schema` allows; empty if unspecified. `root` resolves its references."""
    if not isinstance(schema, Mapping) or depth > 10:
        return set()
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    if not found:
        values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
        found = {_KINDS.get(type(value), "null") for value in values}
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key, ()):
            found |= json_types(one, root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        found |= json_types(target, root, depth + 1)
    return found


def value_rule(
    name: str, schema: Any, root: Mapping[str, Any], where: str, close: str, vocabulary: Mapping[str, int]
) -> str:
    """Return a grammar rule for a value and the text `close` that ends it; the value parses to one that `schema`
    allows. Raises `Unsupported` for constraints that bare text cannot enforce."""
    end = grammar.marker(close, vocabulary)
    kinds = json_types(schema, root)
    if kinds and "string" not in kinds:
        moved = {**schema, **{key: root[key] for key in ("$defs", "definitions") if key in root}}
        return f"{name}: {grammar.json_rule(moved)} {end}"
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices:
        return f"{name}: ({' | '.join(grammar.text(str(one)) for one in choices)}) {end}"
    unheld = {"pattern", "format", "$ref"} & set(schema)
    if unheld:
        raise Unsupported(f"tool_choice: '{min(unheld)}' of the parameter {where} cannot be enforced in this format")
    value = f"(?s:.){{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"
    if close in vocabulary:
        return f"{name}: /{value}/ {end}"
    # Lazy: the value ends at the first end marker.
    return f"{name}[lazy]: /{value}{re.escape(close).replace(chr(10), 'n').replace('/', chr(92) + '/')}/"
