"""What the gateway does with each argument of a request, declared where the argument is.

A field of a request body without one of the annotations below is used. `Ignored` is accepted and changes nothing,
`Hint` is kept with the step and passed to chat templates that read it, `Offered` names things the model could use if
this gateway had them (they are left out and counted), and `Refused` would change the answer and is an error.

An argument that asks for nothing (`is_nothing`) is as if left out, whatever its name. `describe_arguments` gives the
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


class What(StrEnum):
    """What is done with an argument."""

    USED = "used"
    HINT = "hint"
    IGNORED = "no effect"
    OFFERED = "left out"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Argument:
    """The annotation of an argument that is not simply used. `instead` tells a client what to do about a refusal."""

    what: What
    instead: str = "leave it out"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if self.what == What.REFUSED and not is_nothing(value):
            raise ValueError(f"this server does not do this; {self.instead}")
        return value if self.what in (What.HINT, What.OFFERED) and not is_nothing(value) else None


Ignored = Annotated[Any, Argument(What.IGNORED)]
Hint = Annotated[AnyJson, Argument(What.HINT)]
Offered = Annotated[AnyJson, Argument(What.OFFERED)]
Refused = Annotated[Any, Argument(What.REFUSED)]


def is_nothing(value: Any) -> bool:
    """Whether an argument with this value asks for nothing: null, false, empty, or switched off."""
    if isinstance(value, Mapping):
        return all(is_nothing(setting) for setting in cast("Mapping[str, Any]", value).values())
    return value is None or value is False or value == [] or (isinstance(value, str) and value in _OFF)


def without_nothing(body: Any, errors: list[Any]) -> bool:
    """Remove from `body`, parsed JSON, what pydantic's `errors` are about where it asks for nothing; whether something
    was removed, so that the body may be valid now."""
    removed = False
    for error in errors:
        place: tuple[int | str, ...] = error["loc"]
        # What is wrong with an object may be that it asks for nothing: the outermost such value goes.
        for length in range(1, len(place) + 1):
            found = _find(body, place[:length])
            if found is not None and is_nothing(found[0][found[1]]):
                del found[0][found[1]]
                removed = True
                break
    return removed


def _find(value: Any, place: tuple[int | str, ...]) -> tuple[dict[str, Any], str] | None:
    """The object and the key in it that pydantic's `place` names: words for members of unions are no keys."""
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
    """The hints in a request, by the names its client gave them; those of nested objects with dots."""
    found: dict[str, Any] = {}
    for name, field in type(body).model_fields.items():
        value = getattr(body, name)
        if value is None:
            continue
        if any(isinstance(one, Argument) and one.what == What.HINT for one in field.metadata):
            found[name] = value
        elif isinstance(value, BaseModel):
            found |= {f"{name}.{inner}": hint for inner, hint in hints_of(value).items()}
    return found


def describe_arguments(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, What, str]]:
    """Each argument of a request by its dotted name, what is done with it, and why, as its docstring has it. `[]` is an
    item of a list."""
    for name, field in model.model_fields.items():
        own = [one for one in field.metadata if isinstance(one, Argument)]
        what = own[0].what if own else What.USED
        yield f"{prefix}{name}", what, " ".join((field.description or "").split())
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
