"""JSON schemas are rewritten only where they are schemas, and lose only keywords that allow everything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from midstream.core.errors import Unsupported
from midstream.core.types import Constraint
from midstream.engines.formats.grammar import call_rule, json_schema
from midstream.engines.formats.schema import lean, moved
from midstream.engines.grammar import check, compiled

DATA = {"$ref": "#/nowhere", "uniqueItems": False, "format": "fancy"}


def checked(schema: dict[str, Any]) -> None:
    check(Constraint(kind="json_schema", grammar=json_schema(schema)))


@pytest.mark.parametrize("keyword", ["const", "default"])
def test_a_constant_or_default_is_data(keyword: str) -> None:
    schema = {"properties": {"a": {keyword: DATA}, "b": {"$ref": "#/$defs/b"}}, "$defs": {"b": {keyword: DATA}}}
    there = moved(schema, "#/properties/arguments")
    assert there["properties"] == {"a": {keyword: DATA}, "b": {"$ref": "#/properties/arguments/$defs/b"}}
    assert there["$defs"]["b"] == {keyword: DATA} and lean(schema) == schema


@pytest.mark.parametrize("keyword", ["enum", "examples"])
def test_an_enum_or_example_is_data(keyword: str) -> None:
    schema = {"items": {keyword: [DATA, [DATA]]}}
    assert moved(schema, "#/x") == schema == lean(schema)


def test_a_property_named_as_a_keyword_is_a_schema() -> None:
    names = ("const", "enum", "default", "examples", "$ref", "properties")
    schema = {"properties": {name: {"$ref": "#/$defs/b"} for name in names}}
    assert moved(schema, "#/x") == {"properties": {name: {"$ref": "#/x/$defs/b"} for name in names}}


@pytest.mark.parametrize(
    "around", ["items", "not", "additionalProperties", "allOf", "prefixItems", "patternProperties"]
)
def test_references_are_rewritten_wherever_a_schema_can_occur(around: str) -> None:
    def schema(reference: str) -> Any:
        one = {"$ref": reference}
        many = [one] if around in ("allOf", "prefixItems") else {"^a": one} if around == "patternProperties" else one
        return {around: many}

    assert moved(schema("#/$defs/b"), "#/x") == schema("#/x/$defs/b")


def test_a_call_may_have_a_constant_argument_that_looks_like_a_reference() -> None:
    from llguidance import LLTokenizer

    tool: Any = {"function": {"name": "f", "parameters": {"properties": {"a": {"const": DATA}}, "required": ["a"]}}}
    rule = f"start: {call_rule(tool)}"
    matcher = compiled(Constraint(kind="lark", grammar=rule), LLTokenizer("byte"))
    completion = f'{{"name": "f", "arguments": {{"a": {json.dumps(DATA)}}}}}'.encode()
    assert matcher.try_consume_tokens(list(completion)) == len(completion)


VACUOUS: list[dict[str, Any]] = [
    {"type": "array", "uniqueItems": False},
    {"type": "object", "propertyNames": {"type": "string", "title": "Name"}},
    {"type": "object", "propertyNames": True},
    {"type": "object", "unevaluatedProperties": True},
    {"type": "array", "unevaluatedItems": {}},
    {"type": "array", "contains": {"type": "string"}, "minContains": 0},
    {"type": "object", "dependentRequired": {"a": []}, "dependentSchemas": {}},
    {"type": "string", "not": False},
    {"type": "string", "if": {"maxLength": 3}},
    {"type": "string", "if": {"maxLength": 3}, "then": True, "else": {}},
    {"type": "string", "format": "password"},
    {"type": "integer", "format": "int64"},
]


@pytest.mark.parametrize("schema", VACUOUS, ids=str)
def test_keywords_that_allow_everything_are_dropped(schema: dict[str, Any]) -> None:
    assert lean(schema) == {"type": schema["type"]}
    checked({"type": "object", "properties": {"a": {"anyOf": [schema, {"type": "null"}]}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"type": "object", "unevaluatedProperties": False},
        {"type": "array", "contains": {"type": "string"}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "string", "not": {"const": "a"}},
        {"type": "string", "if": {"maxLength": 3}, "then": {"pattern": "a"}},
        {"type": "string", "format": "regex"},
    ],
    ids=str,
)
def test_unsupported_keywords_that_restrict_are_refused(schema: dict[str, Any]) -> None:
    assert lean(schema) == schema
    with pytest.raises(Unsupported, match=r"cannot be followed"):
        checked(schema)
