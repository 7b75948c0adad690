"""`ApiError`, its status codes, and the error bodies that OpenAI's and Anthropic's clients expect."""

from __future__ import annotations

from typing import Any

from midstream.core.errors import EngineError, MidstreamError, PromptTooLong, Unsupported, UserError

RETRY_AFTER_S = 1
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client disconnected, as nginx counts it. Nobody receives it."""


class ApiError(MidstreamError):
    """A refused or failed request: HTTP status, message for the client, and the argument at fault (`param`).

    `code` is stable, for programs. `retry_after_s` becomes a `Retry-After` header."""

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
        # The clients' SDKs retry after 409 and 500 unless this header forbids it.
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
    CLIENT_CLOSED_REQUEST: "client_closed_request",
    500: "internal_error",
    502: "engine_error",
    503: "unavailable",
    504: "timeout",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}


def as_api_error(error: Exception) -> ApiError | None:
    """Return the `ApiError` for an expected error; None if `error` is a bug."""
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


def client_disconnected() -> ApiError:
    return ApiError(CLIENT_CLOSED_REQUEST, "the client disconnected")


def openai_body(error: ApiError) -> dict[str, Any]:
    """Return `error` in OpenAI's shape."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _OPENAI_TYPES.get(error.status, fallback)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """Return `error` in Anthropic's shape."""
    fallback = "api_error" if error.status >= 500 else "invalid_request_error"
    content: dict[str, Any] = {"type": _ANTHROPIC_TYPES.get(error.status, fallback), "message": error.message}
    if error.code == "thread_not_found":  # Anthropic's client then sends the whole conversation
        content["details"] = {"error_code": error.code}
    return {"type": "error", "error": content}
