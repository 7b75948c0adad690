"""Values in a plan: JSON with references to what other nodes returned, and conditions over them.

A reference is `{"$ref": "node.path.0.to"}`: the output of a node of the same plan, then keys and indices. Besides
nodes, a reference can start with one of `HEADS`. `{"$ref": ..., "default": value}` gives a value for one that does
not exist; a path with dots in its keys is written as a list. `{"$literal": value}` keeps a value that only looks like
a reference.

A condition is data too: `{"eq": [{"$ref": "quote.price"}, 3]}`, `{"and": [...]}`, `{"succeeded": "quote"}`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from midstream.plans.errors import Permanent

HEADS = ("input", "item", "index", "previous", "round", "output", "args", "error")
"""First words of references that are no nodes: the plan's input; the element and position in a map; the output of the
previous round of a loop and the round's number (from 1); in `until`, and in arguments of a compensation, what the round
or the node returned; and, for a compensation, the node's arguments and error."""
_MISSING = object()

Lookup = Callable[[str], Any]
"""Returns the value that the first word of a reference stands for."""

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "in": lambda item, items: item in items,
}
STATES = ("succeeded", "failed", "skipped")
_OPERATORS = (*COMPARISONS, "and", "or", "not", "true", *STATES)


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference: its first word, the way from there, and the default if it has one."""

    head: str
    path: tuple[str, ...]
    default: Any = _MISSING

    @property
    def has_default(self) -> bool:
        return self.default is not _MISSING

    def __str__(self) -> str:
        return ".".join((self.head, *self.path))


def as_ref(value: Any) -> Ref | None:
    """Return `value` as a reference; None when it is another value. Raises `ValueError` for a malformed one."""
    if not isinstance(value, dict) or "$ref" not in value:
        return None
    data = cast("dict[str, Any]", value)
    if data.keys() - {"$ref", "default"}:
        raise ValueError(f"a reference has the keys '$ref' and 'default' only, not {sorted(data)}")
    written = data["$ref"]
    if isinstance(written, str):
        parts = written.split(".")
    elif isinstance(written, list):
        parts = [str(part) for part in cast("list[Any]", written)]
    else:
        parts = []
    if not parts or not all(parts):
        raise ValueError(f"'$ref' must be a path such as 'node.key', not {written!r}")
    return Ref(parts[0], tuple(parts[1:]), data.get("default", _MISSING))


def refs_in(value: Any) -> Iterator[Ref]:
    """All references in a value or condition. Raises `ValueError` for a malformed one."""
    if (ref := as_ref(value)) is not None:
        yield ref
    elif isinstance(value, dict):
        data = cast("dict[str, Any]", value)
        if data.keys() != {"$literal"}:
            for item in data.values():
                yield from refs_in(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from refs_in(item)


def resolve(value: Any, lookup: Lookup) -> Any:
    """Return `value` with every reference replaced. Raises `Permanent` for one whose path does not exist."""
    if isinstance(value, dict):
        if (ref := as_ref(cast("dict[str, Any]", value))) is not None:
            return follow(ref, lookup)
        data = cast("dict[str, Any]", value)
        if data.keys() == {"$literal"}:
            return data["$literal"]
        return {key: resolve(item, lookup) for key, item in data.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, lookup) for item in cast("list[Any]", value)]
    return value


def follow(ref: Ref, lookup: Lookup) -> Any:
    """Return what a reference stands for."""
    value = lookup(ref.head)
    for part in ref.path:
        if isinstance(value, Mapping) and part in value:
            value = cast("Mapping[str, Any]", value)[part]
        elif isinstance(value, list | tuple) and part.lstrip("-").isdigit():
            items = cast("list[Any]", value)
            at = int(part)
            if not -len(items) <= at < len(items):
                value = _MISSING
                break
            value = items[at]
        else:
            value = _MISSING
            break
    if value is _MISSING or (value is None and ref.has_default):
        if ref.has_default:
            return ref.default
        raise Permanent(f"the reference '{ref}' leads nowhere: give it a default, or return it from '{ref.head}'")
    return value


def check_condition(condition: Any) -> Iterator[str]:
    """Yield what is wrong with a condition's form."""
    if not isinstance(condition, dict) or len(cast("dict[str, Any]", condition)) != 1:
        yield f"a condition is one operator with its operands, such as {{'eq': [a, b]}}, not {condition!r}"
        return
    ((name, operands),) = cast("dict[str, Any]", condition).items()
    if name not in _OPERATORS:
        yield f"unknown operator '{name}' of a condition; one of: {', '.join(_OPERATORS)}"
    elif name in COMPARISONS:
        if not isinstance(operands, list) or len(cast("list[Any]", operands)) != 2:
            yield f"'{name}' takes a list of two values"
    elif name in ("and", "or"):
        if not isinstance(operands, list) or not operands:
            yield f"'{name}' takes a list of conditions"
        else:
            for one in cast("list[Any]", operands):
                yield from check_condition(one)
    elif name == "not":
        yield from check_condition(operands)
    elif name in STATES and not isinstance(operands, str):
        yield f"'{name}' takes the id of a node"


def nodes_in(condition: Any) -> Iterator[str]:
    """Ids of nodes whose state a condition asks about."""
    if not isinstance(condition, dict):
        return
    for name, operands in cast("dict[str, Any]", condition).items():
        if name in STATES and isinstance(operands, str):
            yield operands
        elif name in ("and", "or") and isinstance(operands, list):
            for one in cast("list[Any]", operands):
                yield from nodes_in(one)
        elif name == "not":
            yield from nodes_in(operands)


def holds(condition: Any, lookup: Lookup, state: Callable[[str], str]) -> bool:
    """Whether a condition holds. `state` returns the state of a node. Raises `Permanent` when values cannot be
    compared."""
    ((name, operands),) = cast("dict[str, Any]", condition).items()
    if name == "and":
        return all(holds(one, lookup, state) for one in operands)
    if name == "or":
        return any(holds(one, lookup, state) for one in operands)
    if name == "not":
        return not holds(operands, lookup, state)
    if name in STATES:
        return state(operands) == name
    if name == "true":
        return bool(resolve(operands, lookup))
    left, right = (resolve(one, lookup) for one in operands)
    try:
        return bool(COMPARISONS[name](left, right))
    except TypeError:
        raise Permanent(f"the condition '{name}' cannot compare {left!r} with {right!r}") from None
