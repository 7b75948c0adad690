"""JSON of no fixed form, checked so that everybody who reads it later can."""

from __future__ import annotations

import math
from typing import Annotated, Any, cast

from pydantic import AfterValidator

DEEPEST = 64
"""Lists and objects within each other in JSON of no fixed form."""


def _plain_json(value: Any) -> Any:
    """`value`, when everybody who reads it later can: not too deep, Unicode, and no number that JSON does not have."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*cast("dict[str, Any]", item).keys(), *cast("dict[str, Any]", item).values()]
            elif isinstance(item, list):
                inner += cast("list[Any]", item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{item} is not a number that JSON has")
            elif isinstance(item, str) and not item.isascii():
                item.encode()  # half of a surrogate pair is a ValueError
        if not inner:
            return value
        level = inner
    raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")


AnyJson = Annotated[Any, AfterValidator(_plain_json)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_json)]
"""JSON of no fixed form."""
