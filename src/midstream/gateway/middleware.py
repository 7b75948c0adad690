"""What every request goes through: counting, and the door shut to pages of other sites."""

from __future__ import annotations

import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midstream.gateway.errors import ApiError, openai_body
from midstream.gateway.metrics import Metrics


class Measured:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            status = 500
            raise
        finally:
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "none"), status, time.perf_counter() - began)


class SameOrigin:
    """Refuses what a page of another site has a browser send. For gateways without keys, where that would be let in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            origin, host = headers.get(b"origin"), headers.get(b"host", b"")
            if origin is not None and origin.partition(b"://")[2] != host:
                told = f"a page of {origin.decode('latin-1')} may not use this gateway, which has no keys"
                await JSONResponse(openai_body(ApiError(403, told)), 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)
