"""`convert_units`: converts a number between units, by pint."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from midstream.tools.declare import tool
from midstream.tools.errors import ToolError

MAX_UNIT_CHARS = 60
_UNIT = re.compile(r"[A-Za-z°µμΩÅ_%/*^ .·0-9()-]+")
_POWER = re.compile(r"\*\*|\^")
_SMALL_POWER = re.compile(r"(?<=[^\d\s])\s*(?:\*\*|\^)\s*-?\d(?![\d.])")
"""A unit, not a number, to a one-digit power: pint would compute any power of a number, such as 9**9**9."""


@tool(
    idempotent=True,
    returns="number with unit",
    examples=[{"value": 5, "from_unit": "mile", "to_unit": "kilometer"}],
    limits=["no currencies"],
)
def convert_units(value: float, from_unit: str, to_unit: str) -> str:
    """Convert a number from one unit to another.

    Args:
        from_unit: such as mile, km/h, degC
        to_unit: a unit of the same kind
    """
    import pint

    registry = _registry()
    source, target = _unit(registry, from_unit), _unit(registry, to_unit)
    try:
        converted = registry.Quantity(value, source).to(target).magnitude
    except pint.DimensionalityError:
        raise ToolError(f"{from_unit} and {to_unit} measure different things") from None
    except (pint.OffsetUnitCalculusError, ArithmeticError, ValueError) as error:
        raise ToolError(f"cannot convert {from_unit} to {to_unit}: {error}") from None
    return f"{converted:.10g} {to_unit.strip()}"


def _unit(registry: Any, text: str) -> Any:
    if len(text) > MAX_UNIT_CHARS or not _UNIT.fullmatch(text):
        raise ToolError(f"'{text[:MAX_UNIT_CHARS]}' is not a unit")
    if len(_POWER.findall(text)) != len(_SMALL_POWER.findall(text)):
        raise ToolError("the power of a unit is a single digit, as in m**2")
    try:
        return registry.parse_units(text.strip())
    except Exception as error:  # pint passes on all errors of its tokenizer, parser and definitions
        raise ToolError(f"'{text}' is not a unit: {type(error).__name__}") from None


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(cache_folder=None)
