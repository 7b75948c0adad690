"""Turns pydantic's errors about a request body into one message that names every wrong argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from midstream.gateway.http.errors import ApiError

MOST_REPORTED = 100
"""Errors of one body that are reported."""
_Error = Mapping[str, Any]


def invalid_body(error: ValidationError) -> ApiError:
    """Return the `ApiError` 400 for a body that `error` is about."""
    many = error.error_count() > MOST_REPORTED
    found: Sequence[_Error] = error.errors(include_url=False, include_input=not many)[:MOST_REPORTED]
    # In a union of string and object, "should be a string" does not help a client that sent an object.
    found = [e for e in found if not (e["type"] == "string_type" and e["loc"][-1] == "str")] or found
    # If the `type` of an object is unknown, errors about its other fields are noise.
    unknown = {e["loc"][:-1] for e in found if e["type"] == "literal_error" and e["loc"][-1:] == ("type",)}
    found = [e for e in found if e["loc"][-1:] == ("type",) or not _is_inside(e["loc"], unknown)]
    messages = [_message(e, e["loc"][:-1] in unknown) for e in found]
    return ApiError(400, "; ".join(dict.fromkeys(messages)), param=_dotted(found[0]["loc"]) or None)


def invalid_json(reason: str) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {reason}")


def _is_inside(place: tuple[int | str, ...], objects: set[tuple[int | str, ...]]) -> bool:
    return bool(objects & {place[:length] for length in range(len(place))})


def _message(error: _Error, unknown_type: bool) -> str:
    name = _dotted(error["loc"])
    if error["type"] == "literal_error" and unknown_type and isinstance(error.get("input"), str):
        return f"'{name}' is '{error['input'][:40]}', which this server does not support; {error['msg']}"
    if error["type"] == "extra_forbidden":
        return f"'{name}' is not an argument this server honours; leave it out"
    if error["type"] == "missing":
        return f"'{name}' is required"
    return f"'{name}': {error['msg'].removeprefix('Value error, ')}"


def _dotted(place: tuple[int | str, ...]) -> str:
    """Return the place in the body, without the names that pydantic adds for branches of a union."""
    return ".".join(str(part) for part in place if not str(part)[:1].isupper() and "[" not in str(part))
