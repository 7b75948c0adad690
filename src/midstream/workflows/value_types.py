"""Types of the values that flow through a workflow, read from Python type hints."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from midstream.core.errors import ConfigError

Kind = Literal["text", "boolean", "number", "list", "record", "none", "any"]


@dataclass(frozen=True, slots=True)
class ValueType:
    """A type. `item` is set for lists, `fields` for records; `optional` values may also be None."""

    kind: Kind
    item: ValueType | None = None
    fields: tuple[tuple[str, ValueType], ...] = ()
    optional: bool = False

    def field(self, key: str) -> ValueType | None:
        """The type of a record's field, or None when there is no such field."""
        return dict(self.fields).get(key)

    def __str__(self) -> str:
        text: str = self.kind
        if self.kind == "list" and self.item is not None:
            text = f"list of {self.item}"
        elif self.kind == "record":
            text = "record {" + ", ".join(f"{name}: {value}" for name, value in self.fields) + "}"
        return f"{text} or none" if self.optional else text


TEXT, BOOLEAN, NUMBER, NONE, ANY = (
    ValueType("text"),
    ValueType("boolean"),
    ValueType("number"),
    ValueType("none"),
    ValueType("any"),
)


def list_of(item: ValueType) -> ValueType:
    return ValueType("list", item=item)


def record(fields: Mapping[str, ValueType]) -> ValueType:
    return ValueType("record", fields=tuple(fields.items()))


def fits(actual: ValueType, expected: ValueType) -> bool:
    """Whether a value of type `actual` can be used where `expected` is asked for. An unknown type fits everywhere; the
    runner checks its value."""
    if "any" in (actual.kind, expected.kind):
        return True
    if actual.kind == "none":
        return expected.optional or expected.kind == "none"
    if actual.kind != expected.kind:
        return False
    if actual.kind == "list" and actual.item is not None and expected.item is not None:
        return fits(actual.item, expected.item)
    if actual.kind == "record":
        return all((found := actual.field(name)) is not None and fits(found, of) for name, of in expected.fields)
    return True


def join(one: ValueType, other: ValueType) -> ValueType:
    """The type of a value that has either type; `any` where they have nothing in common."""
    if one == other:
        return one
    if "none" in (one.kind, other.kind):
        rest = other if one.kind == "none" else one
        return ValueType(rest.kind, rest.item, rest.fields, optional=True)
    optional = one.optional or other.optional
    if one.kind == other.kind == "list" and one.item is not None and other.item is not None:
        return ValueType("list", item=join(one.item, other.item), optional=optional)
    if one.kind == other.kind == "record":
        shared = {name: join(of, found) for name, of in one.fields if (found := other.field(name)) is not None}
        return ValueType("record", fields=tuple(shared.items()), optional=optional)
    return ValueType(one.kind, one.item, one.fields, optional) if one.kind == other.kind else ANY


def type_of_hint(hint: Any, where: str) -> ValueType:
    """The type of a Python hint: str, bool, int, float, None, lists and TypedDicts of them, `X | None`, Any.

    Raises `ConfigError` for any other hint."""
    simple = {str: TEXT, bool: BOOLEAN, int: NUMBER, float: NUMBER, type(None): NONE, None: NONE, Any: ANY}
    if hint in simple:
        return simple[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list and len(arguments) == 1:
        return list_of(type_of_hint(arguments[0], where))
    if origin in (typing.Union, types.UnionType):
        result = type_of_hint(arguments[0], where)
        for other in arguments[1:]:
            result = join(result, type_of_hint(other, where))
        return result
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        return record({name: type_of_hint(of, f"{where}.{name}") for name, of in hints.items()})
    raise ConfigError(
        f"{where}: a workflow has no values of type {hint!r}",
        "use str, bool, int, float, lists, TypedDicts of them, or X | None",
    )


def json_schema(of: ValueType) -> dict[str, Any]:
    """The JSON schema of a type."""
    names = {"text": "string", "boolean": "boolean", "number": "number", "none": "null", "list": "array"}
    schema: dict[str, Any] = {}
    if of.kind == "record":
        schema = {"type": "object", "properties": {name: json_schema(one) for name, one in of.fields}}
        schema |= {"required": [name for name, _ in of.fields], "additionalProperties": False}
    elif of.kind != "any":
        schema = {"type": names[of.kind]}
        if of.kind == "list" and of.item is not None:
            schema["items"] = json_schema(of.item)
    return {"anyOf": [schema, {"type": "null"}]} if of.optional else schema


def type_of_value(value: Any) -> ValueType:
    """The type of a value at run time."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int | float):
        return NUMBER
    if isinstance(value, str):
        return TEXT
    if isinstance(value, list):
        item = ANY
        for place, one in enumerate(typing.cast("list[Any]", value)):
            item = type_of_value(one) if place == 0 else join(item, type_of_value(one))
        return list_of(item)
    if isinstance(value, dict):
        return record({str(name): type_of_value(one) for name, one in typing.cast("dict[Any, Any]", value).items()})
    return ANY
