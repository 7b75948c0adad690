"""The pure built-in functions of workflow code: their types, and what they compute.

`and` and `or` return one of their operands, as in Python; the runner evaluates their operands only as needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from midstream.workflows.value_types import BOOLEAN, NUMBER, TEXT, ValueType, fits, join, list_of

Written = Literal["infix", "prefix", "call", "method"]


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One function. `written` is its place in code: `a + b`, `not a`, `len(a)`, `a.strip()`."""

    name: str
    written: Written
    arity: tuple[int, int]
    """Fewest and most arguments, the object of a method included."""
    result: Callable[[Sequence[ValueType]], ValueType | str]
    """The type of the result, or what is wrong with the arguments."""
    compute: Callable[..., Any]


def _takes(expected: Sequence[ValueType], returns: ValueType) -> Callable[[Sequence[ValueType]], ValueType | str]:
    def result(actual: Sequence[ValueType]) -> ValueType | str:
        for found, wanted in zip(actual, expected, strict=False):
            if not fits(found, wanted):
                return f"takes {wanted}, not {found}"
        return returns

    return result


def _plus(types: Sequence[ValueType]) -> ValueType | str:
    total = types[0]
    for other in types[1:]:
        if "any" in (total.kind, other.kind):
            total = other if total.kind == "any" else total
        elif total.kind != other.kind:
            return f"cannot add {other} to {total}"
        elif total.kind == "list":
            total = join(total, other)
    return total if total.kind in ("text", "number", "list", "any") else f"cannot add {total}"


def _compared(types: Sequence[ValueType]) -> ValueType | str:
    one, other = types
    if "any" in (one.kind, other.kind) or (one.kind == other.kind and one.kind in ("text", "number")):
        return BOOLEAN
    return f"cannot order {one} and {other}"


def _contained(types: Sequence[ValueType]) -> ValueType | str:
    item, within = types
    if within.kind == "text" and item.kind not in ("text", "any"):
        return f"cannot look for {item} in text"
    return BOOLEAN if within.kind in ("text", "list", "record", "any") else f"cannot look into {within}"


def _operand(types: Sequence[ValueType]) -> ValueType:
    total = types[0]
    for other in types[1:]:
        total = join(total, other)
    return total


def _sized(types: Sequence[ValueType]) -> ValueType | str:
    return NUMBER if types[0].kind in ("text", "list", "any") else f"takes text or a list, not {types[0]}"


def _as_text(types: Sequence[ValueType]) -> ValueType | str:
    if types[0].kind in ("record", "list"):
        return f"cannot make text of {types[0]}"
    return TEXT


def _add(*values: Any) -> Any:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _always(_: Sequence[ValueType]) -> ValueType:
    return BOOLEAN


_NUMBERS = _takes((NUMBER, NUMBER), NUMBER)
_ONE_TEXT = _takes((TEXT,), TEXT)
_TWO_TEXTS = _takes((TEXT, TEXT), BOOLEAN)
_TEXTS = list_of(TEXT)

FUNCTIONS: dict[str, BuiltIn] = {
    one.name: one
    for one in (
        BuiltIn("+", "infix", (2, 64), _plus, _add),
        BuiltIn("-", "infix", (2, 2), _NUMBERS, lambda a, b: a - b),
        BuiltIn("*", "infix", (2, 2), _NUMBERS, lambda a, b: a * b),
        BuiltIn("==", "infix", (2, 2), _always, lambda a, b: a == b),
        BuiltIn("!=", "infix", (2, 2), _always, lambda a, b: a != b),
        BuiltIn("<", "infix", (2, 2), _compared, lambda a, b: a < b),
        BuiltIn("<=", "infix", (2, 2), _compared, lambda a, b: a <= b),
        BuiltIn(">", "infix", (2, 2), _compared, lambda a, b: a > b),
        BuiltIn(">=", "infix", (2, 2), _compared, lambda a, b: a >= b),
        BuiltIn("in", "infix", (2, 2), _contained, lambda a, b: a in b),
        BuiltIn("not in", "infix", (2, 2), _contained, lambda a, b: a not in b),
        BuiltIn("and", "infix", (2, 16), _operand, lambda *values: values[-1]),
        BuiltIn("or", "infix", (2, 16), _operand, lambda *values: values[-1]),
        BuiltIn("not", "prefix", (1, 1), _always, lambda a: not a),
        BuiltIn("len", "call", (1, 1), _sized, len),
        BuiltIn("str", "call", (1, 1), _as_text, str),
        BuiltIn("strip", "method", (1, 1), _ONE_TEXT, lambda a: a.strip()),
        BuiltIn("lower", "method", (1, 1), _ONE_TEXT, lambda a: a.lower()),
        BuiltIn("upper", "method", (1, 1), _ONE_TEXT, lambda a: a.upper()),
        BuiltIn("startswith", "method", (2, 2), _TWO_TEXTS, lambda a, b: a.startswith(b)),
        BuiltIn("endswith", "method", (2, 2), _TWO_TEXTS, lambda a, b: a.endswith(b)),
        BuiltIn("splitlines", "method", (1, 1), _takes((TEXT,), _TEXTS), lambda a: a.splitlines()),
        BuiltIn("join", "method", (2, 2), _takes((TEXT, _TEXTS), TEXT), lambda a, b: a.join(b)),
        BuiltIn("replace", "method", (3, 3), _takes((TEXT, TEXT, TEXT), TEXT), lambda a, b, c: a.replace(b, c)),
    )
}
"""Every built-in function by name."""
