"""JSON responses, and the response to each kind of error."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from midstream.gateway.http.errors import ApiError, anthropic_body, as_api_error, openai_body


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `body` as JSON. Lone surrogates in it are escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode(errors="backslashreplace"), status, headers, "application/json")


async def error_response(request: Request, error: Exception) -> Response:
    """Return the response to a request that failed with `error`."""
    reported, headers = reported_error(error), dict[str, str]()
    if isinstance(error, HTTPException):
        path, headers = request.url.path[:200], dict(error.headers or {})
        # Clients have methods for endpoints that are not served here; "Not Found" alone would not tell which.
        if error.status_code == 404:
            reported = ApiError(404, f"there is no {request.method} {path} here; /docs lists every endpoint")
        elif error.status_code == 405:
            reported = ApiError(405, f"{path} takes {headers.get('Allow', 'another method')}, not {request.method}")
    body = anthropic_body(reported) if "/v1/messages" in request.url.path else openai_body(reported)
    return json_response(body, reported.status, {**headers, **reported.headers})


def is_expected(error: Exception) -> bool:
    """Return whether `error` is the client's or the engine's fault. Others are bugs, whose traceback is logged."""
    return isinstance(error, HTTPException) or as_api_error(error) is not None


def reported_error(error: Exception) -> ApiError:
    """Convert `error` to the error that the client receives: for a bug only its type; the log has the rest."""
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    return as_api_error(error) or ApiError(
        500, f"the gateway failed with {type(error).__name__}; see the gateway's log"
    )
