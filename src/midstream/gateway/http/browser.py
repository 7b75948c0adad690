"""What pages for browsers need: a key as the password of basic authentication, and forms that only they may send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from midstream.gateway.http.errors import ApiError, openai_body
from midstream.gateway.http.identity import browser_caller
from midstream.gateway.http.responses import json_response
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway

_BASIC = {"WWW-Authenticate": 'Basic realm="Midstream gateway: a key is the password", charset="UTF-8"'}

Handler = Callable[[Request, Caller], Awaitable[Response]]


def page_endpoint(gateway: Gateway, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that lets the browser ask for a key if the gateway has keys, and calls `handler`."""

    async def endpoint(request: Request) -> Response:
        try:
            caller = browser_caller(request, gateway)
        except ApiError as error:
            return json_response(openai_body(error), error.status, _BASIC)
        return await handler(request, caller)

    return endpoint


def require_own_form(request: Request, gateway: Gateway) -> None:
    """Raise `ApiError` 403 for a form on a page of another site: browsers add the key to it by themselves. The origin
    `null`, which browsers send for sandboxed pages, may be any site."""
    origin = request.headers.get("origin")
    hosts = {request.headers.get("host", "").lower(), urlsplit(gateway.config.url or "").netloc.lower()}
    if origin is not None and origin.partition("://")[2].lower() not in hosts - {""}:
        raise ApiError(403, f"a page of {origin[:100]} may not send forms to this gateway")
