"""Declares how the gateway treats each argument of a request, in the type of its field.

A field without one of these annotations is used. `Ignored` is accepted without effect. `Hint` is kept with the step and
passed to chat templates that read it. `Offered` names things this gateway does not have; they are dropped and counted.
`Refused` would change the answer and is an error.

An argument that asks for nothing (`is_empty`) counts as left out, whatever its name. `describe_arguments` makes the
table in `docs/agents.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, cast, get_args

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from midstream.gateway.dialects.plain_json import AnyJson

_OFF = ("", "disabled", "off")
"""Values by which clients switch something off."""


class Treatment(StrEnum):
    """How an argument is treated."""

    USED = "used"
    HINT = "hint"
    IGNORED = "no effect"
    OFFERED = "left out"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Argument:
    """Annotation of a field that is not simply used. `instead` tells a client what to do about a refusal."""

    treatment: Treatment
    instead: str = "leave it out"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if self.treatment == Treatment.REFUSED and not is_empty(value):
            raise ValueError(f"this server does not support it; {self.instead}")
        return value if self.treatment in (Treatment.HINT, Treatment.OFFERED) and not is_empty(value) else None


Ignored = Annotated[Any, Argument(Treatment.IGNORED)]
Hint = Annotated[AnyJson, Argument(Treatment.HINT)]
Offered = Annotated[AnyJson, Argument(Treatment.OFFERED)]
Refused = Annotated[Any, Argument(Treatment.REFUSED)]


def is_empty(value: Any) -> bool:
    """Return whether an argument with this value asks for nothing: null, false, empty, or switched off."""
    if isinstance(value, Mapping):
        return all(is_empty(setting) for setting in cast("Mapping[str, Any]", value).values())
    return value is None or value is False or value == [] or (isinstance(value, str) and value in _OFF)


def remove_empty(body: Any, errors: list[Any]) -> bool:
    """Remove empty arguments that pydantic's `errors` are about from `body`, parsed JSON. Return whether something was
    removed, so that the body may be valid now."""
    removed = False
    for error in errors:
        place: tuple[int | str, ...] = error["loc"]
        # The error may be inside an empty object: remove the outermost empty value.
        for length in range(1, len(place) + 1):
            entry = _find(body, place[:length])
            if entry is not None and is_empty(entry[0][entry[1]]):
                del entry[0][entry[1]]
                removed = True
                break
    return removed


def _find(value: Any, place: tuple[int | str, ...]) -> tuple[dict[str, Any], str] | None:
    """Return the object and its key at pydantic's `place`, which also contains names of union members."""
    if not place:
        return None
    first, rest = place[0], place[1:]
    if isinstance(value, dict) and first in value:
        inside = cast("dict[str, Any]", value)
        found = (inside, str(first)) if not rest else _find(inside[str(first)], rest)
        if found is not None:
            return found
    if isinstance(value, list) and isinstance(first, int) and first < len(cast("list[Any]", value)):
        return _find(value[first], rest)
    return _find(value, rest) if isinstance(first, str) else None


def hints_of(body: BaseModel) -> dict[str, Any]:
    """Return the hints of a request by argument name; nested ones with dots."""
    hints: dict[str, Any] = {}
    for name, field in type(body).model_fields.items():
        value = getattr(body, name)
        if value is None:
            continue
        if any(isinstance(one, Argument) and one.treatment == Treatment.HINT for one in field.metadata):
            hints[name] = value
        elif isinstance(value, BaseModel):
            hints |= {f"{name}.{inner}": hint for inner, hint in hints_of(value).items()}
    return hints


def describe_arguments(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Treatment, str]]:
    """Yield each argument's dotted name (`[]` for items of a list), its treatment, and its docstring."""
    for name, field in model.model_fields.items():
        own = [one for one in field.metadata if isinstance(one, Argument)]
        treatment = own[0].treatment if own else Treatment.USED
        yield f"{prefix}{name}", treatment, " ".join((field.description or "").split())
        if not own:
            for nested, suffix in dict.fromkeys(_models_in(field.annotation)):
                yield from describe_arguments(nested, f"{prefix}{name}{suffix}.")


def _models_in(kind: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind, suffix
        return
    suffix = f"{suffix}[]" if getattr(kind, "__origin__", None) is list else suffix
    for inner in get_args(kind):
        yield from _models_in(inner, suffix)
