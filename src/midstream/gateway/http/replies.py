"""What goes back over HTTP: JSON, errors in the shape a client expects, streams of events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from midstream.gateway.http.disconnect import raced
from midstream.gateway.http.errors import ApiError, anthropic_body, as_api_error, invalid, openai_body

_log = logging.getLogger(__name__)
PINGS = {"anthropic": b'event: ping\ndata: {"type": "ping"}\n\n', "openai": b": ping\n\n"}
"""What fills a silence, by dialect."""


def as_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` as JSON; half of a surrogate pair in it is escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode(errors="backslashreplace"), status, headers, "application/json")


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in `error`."""
    told, headers = _told(error), {}
    if isinstance(error, HTTPException):
        path, headers = request.url.path[:200], dict(error.headers or {})
        # Clients have methods for more than is served here, and would say "Not Found" for each.
        if error.status_code == 404:
            told = ApiError(404, f"there is no {request.method} {path} here; /docs has every endpoint")
        elif error.status_code == 405:
            told = ApiError(405, f"{path} takes {headers.get('Allow', 'another method')}, not {request.method}")
    return as_json(_shaped(told, request.url.path), told.status, {**headers, **told.headers})


def is_answer(error: Exception) -> bool:
    """Whether `error` is no bug of ours: the client is told what it is, and nobody else needs to know."""
    return isinstance(error, RequestValidationError | HTTPException) or as_api_error(error) is not None


def _told(error: Exception) -> ApiError:
    """What a client is told of `error`. A bug of ours is logged by the server and named by its type only."""
    if isinstance(error, RequestValidationError):
        return invalid(list(error.errors()))
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    own = as_api_error(error)
    return own or ApiError(500, f"the gateway failed with {type(error).__name__}; its log says where")


def _shaped(error: ApiError, path: str) -> dict[str, Any]:
    return anthropic_body(error) if "/v1/messages" in path else openai_body(error)


class EventStream(StreamingResponse):
    """Server-sent events, given up when the client goes. An error before the first event is answered as ever; one after
    it is an event of its own. Where nothing comes for `ping_s`, an event says that the server is there."""

    def __init__(self, events: AsyncGenerator[bytes], dialect: str, ping_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._dialect, self._ping_s = events, dialect, ping_s
        self._started = False
        self._last = 0.0
        """When something was sent, by the event loop's clock."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            with suppress(ClientDisconnect):
                await raced(self._answer(send), receive)

    async def _answer(self, send: Send) -> None:
        loop, pinging = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        self._last = loop.time()
        # Most streams are over before one is due.
        due = loop.call_later(self._ping_s, lambda: pinging.append(loop.create_task(self._ping(send))))
        try:
            try:
                first = await anext(self._events, b"")
            except Exception as error:
                if not self._started:  # the exception handlers answer it
                    raise
                await self._fail(error, send)
                return
            await self._send(first, send)
        finally:
            due.cancel()
            for task in pinging:
                task.cancel()

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = self._last + self._ping_s - loop.time()
            if left <= 0:
                await self._body(PINGS[self._dialect], send)
                left = self._ping_s
            await asyncio.sleep(left)

    async def _body(self, event: bytes, send: Send) -> None:
        self._last = asyncio.get_running_loop().time()
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _send(self, first: bytes, send: Send) -> None:
        event = first
        try:
            while event:
                await self._body(event, send)
                event = await anext(self._events, b"")
        except Exception as error:
            await self._fail(error, send)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, error: Exception, send: Send) -> None:
        told = _told(error)
        if as_api_error(error) is None:
            _log.error("a stream failed", exc_info=error)
        body = anthropic_body(told) if self._dialect == "anthropic" else openai_body(told)
        name = "event: error\n" if self._dialect == "anthropic" else ""
        last = f"{name}data: {json.dumps(body)}\n\n".encode()
        await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
