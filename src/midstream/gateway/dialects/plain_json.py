"""JSON of any form in request bodies: limited in depth, and readable by every later reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import AfterValidator

DEEPEST = 64
"""Limit on the nesting of lists and objects."""


def _plain_json(value: Any) -> Any:
    """Return `value` if it is not nested too deeply, valid Unicode, and without numbers that JSON lacks (NaN)."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*cast("dict[str, Any]", item).keys(), *cast("dict[str, Any]", item).values()]
            elif isinstance(item, list):
                inner += cast("list[Any]", item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{item} is not a number in JSON")
            elif isinstance(item, str) and not item.isascii():
                item.encode()  # a lone surrogate is a ValueError
        if not inner:
            return value
        level = inner
    raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")


AnyJson = Annotated[Any, AfterValidator(_plain_json)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_json)]


def is_larger_than(value: Any, size: int) -> bool:
    """Return whether JSON `value` has more than `size` characters, counting each number, list and object as one. Takes
    time proportional to `size`, however large the value is."""
    waiting, found = [value], 0
    while waiting:
        item = waiting.pop()
        found += len(item) if isinstance(item, str) else 1
        if isinstance(item, Mapping):
            entries = cast("Mapping[str, Any]", item)
            found += len(entries)
            if found <= size:
                waiting += [*entries.keys(), *entries.values()]
        elif isinstance(item, Sequence) and not isinstance(item, str):
            found += len(item)
            if found <= size:
                waiting += item
        if found > size:
            return True
    return False
