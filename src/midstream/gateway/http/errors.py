"""What goes wrong at the endpoint, once, and the two shapes clients expect to read it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midstream.core.errors import EngineError, MidstreamError, PromptTooLong, Unsupported, UserError

RETRY_AFTER_S = 1


class ApiError(MidstreamError):
    """A refused or failed request: an HTTP status, what to tell the client, and which argument it is about.

    `code` is a word a program can compare; `retry_after_s` makes a `Retry-After` header."""

    def __init__(
        self, status: int, message: str, *, code: str = "", param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status, "invalid_request")
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_s is not None:
            return {"Retry-After": str(max(1, round(self.retry_after_s)))}
        # Clients would ask again after a conflict or a bug, unless they are told not to.
        return {"x-should-retry": "false"} if self.status in (409, 500) else {}


_CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    410: "gone",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    500: "internal_error",
    502: "engine_error",
    503: "unavailable",
    504: "timeout",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}


def as_api_error(error: Exception) -> ApiError | None:
    """The answer to an error of ours that a call ended in; None for one that is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return ApiError(400, f"{error}; nothing is cut: shorten the conversation", code="context_length_exceeded")
    if isinstance(error, Unsupported):
        return ApiError(400, str(error), code="unsupported")
    if isinstance(error, RecursionError):
        return ApiError(400, "something in this request is nested too deeply")
    if isinstance(error, EngineError):
        return ApiError(502, f"the engine failed: {error}", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, UserError):
        return ApiError(503, str(error), retry_after_s=RETRY_AFTER_S)
    return None


def openai_body(error: ApiError) -> dict[str, Any]:
    """`error` as OpenAI's clients read it."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _OPENAI_TYPES.get(error.status, fallback)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """`error` as Anthropic's clients read it."""
    fallback = "api_error" if error.status >= 500 else "invalid_request_error"
    told: dict[str, Any] = {"type": _ANTHROPIC_TYPES.get(error.status, fallback), "message": error.message}
    if error.code == "thread_not_found":  # its clients then send the whole conversation
        told["details"] = {"error_code": error.code}
    return {"type": "error", "error": told}


def invalid(errors: list[Mapping[str, Any]]) -> ApiError:
    """The answer to a body that pydantic did not accept: every argument that is wrong, by name."""
    told: list[str] = []
    # "Not a string either" helps nobody where it is the other branch that was meant.
    meant = [e for e in errors if not (e["type"] == "string_type" and e["loc"][-1] == "str")] or errors
    # What is of another type is not to be told what that type would need.
    others = {e["loc"][:-1] for e in meant if e["type"] == "literal_error" and e["loc"][-1:] == ("type",)}
    meant = [
        e for e in meant if e["loc"][-1:] == ("type",) or not others & {e["loc"][:n] for n in range(len(e["loc"]))}
    ]
    for item in meant:
        name = _dotted(item["loc"])
        if item["type"] == "literal_error" and item["loc"][:-1] in others and isinstance(item.get("input"), str):
            told.append(f"'{name}' is '{item['input'][:40]}', which this server does not have; {item['msg']}")
        elif item["type"] == "extra_forbidden":
            told.append(f"'{name}' is not an argument this server honours; leave it out")
        elif item["type"] == "json_invalid":
            told.append(f"the body is not valid JSON: {item.get('ctx', {}).get('error', item['msg'])}")
        elif item["type"] == "missing":
            told.append(f"'{name}' is required")
        else:
            told.append(f"'{name}': {item['msg'].removeprefix('Value error, ')}")
    return ApiError(400, "; ".join(dict.fromkeys(told)), param=_dotted(meant[0]["loc"]) or None)


def _dotted(path: tuple[int | str, ...]) -> str:
    """Where in the body: without the words that pydantic puts in for branches of a union."""
    named = [str(part) for part in path if part != "body" and not str(part)[:1].isupper() and "[" not in str(part)]
    return ".".join(named)
