"""JSON text that round-trips exactly.

Plain JSON is written unchanged. Values that JSON would change are tagged: a tuple as `{"!tuple": [...]}`, a mapping
with keys other than text as `{"!dict": [[key, value], ...]}`, a non-finite number as `{"!float": "inf"}`. Invalid
Unicode is kept as \\u escapes. A value that cannot be represented raises an error when it is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from midstream.core.errors import RunError

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
_encode_ascii = json.JSONEncoder(check_circular=False, allow_nan=False, separators=(",", ":")).encode
_LEAVES = frozenset({str, int, bool, float, type(None)})


def to_json(value: Any, where: str) -> str:
    """Return `value` as JSON text; raise `RunError` naming `where` if it would not round-trip."""
    if _is_plain(value):
        tagged = value
    elif type(value) is tuple and all(map(_is_plain, cast("tuple[Any, ...]", value))):
        tagged = {"!tuple": value}
    else:
        tagged = _tagged(value, where)
    try:
        text = _encode(tagged)
    except ValueError:  # a non-finite float
        tagged = _tagged(value, where)
        text = _encode(tagged)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which a database rejects but a \u escape can represent
        return _encode_ascii(tagged)
    return text


def from_json(text: str) -> Any:
    return json.loads(text, object_hook=_untagged)


def _is_plain(value: Any) -> bool:
    """Whether a JSON round trip is exact, non-finite floats aside."""
    kind = type(value)
    if kind in _LEAVES:
        return True
    if kind is list:
        return all(map(_is_plain, value))
    if kind is not dict:
        return False
    for key, item in value.items():
        if type(key) is not str or key[:1] == "!" or not (type(item) in _LEAVES or _is_plain(item)):
            return False
    return True


def _tagged(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"!float": repr(float(value))}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_tagged(item, where) for item in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return {"!tuple": [_tagged(item, where) for item in cast("tuple[Any, ...]", value)]}
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        if all(isinstance(key, str) and not key.startswith("!") for key in mapping):
            return {str(key): _tagged(item, where) for key, item in mapping.items()}
        return {"!dict": [[_tagged(key, where), _tagged(item, where)] for key, item in mapping.items()]}
    raise RunError(
        f"cannot record the {where}: it holds a {type(value).__name__}",
        "use text, numbers, true/false, None, and lists, tuples or mappings of these",
    )


def _untagged(data: dict[str, Any]) -> Any:
    if len(data) == 1:
        if "!tuple" in data:
            return tuple(data["!tuple"])
        if "!dict" in data:
            return {key: item for key, item in data["!dict"]}
        if "!float" in data:
            return float(data["!float"])
    return data
