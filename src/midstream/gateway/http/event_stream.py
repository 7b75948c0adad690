"""Server-sent events. Starlette's `StreamingResponse` and `sse-starlette` differ in three ways that matter here; see
docs/lessons.md for the measurement."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from midstream.gateway.http.cancellation import cancel_on_disconnect
from midstream.gateway.http.errors import anthropic_body, as_api_error, openai_body
from midstream.gateway.http.responses import reported_error

_log = logging.getLogger(__name__)
PINGS = {"anthropic": b'event: ping\ndata: {"type": "ping"}\n\n', "openai": b": ping\n\n"}
"""Sent during a silence, by dialect."""


class EventStream(StreamingResponse):
    """A stream of server-sent events, cancelled when the client disconnects.

    The status is sent with the first event: an error before it becomes an HTTP error, one after it an error event. A
    ping is sent after `ping_s` without an event."""

    def __init__(self, events: AsyncGenerator[bytes], dialect: str, ping_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._dialect, self._ping_s = events, dialect, ping_s
        self._started = False
        self._last_sent = 0.0
        """By the event loop's clock."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            with suppress(ClientDisconnect):
                await cancel_on_disconnect(self._stream(send), receive)

    async def _stream(self, send: Send) -> None:
        loop, pinging = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        self._last_sent = loop.time()
        # Most streams end before their first ping, and need no task for it.
        first_ping = loop.call_later(self._ping_s, lambda: pinging.append(loop.create_task(self._ping(send))))
        try:
            async for event in self._events:
                await self._send(event, send)
        except Exception as error:
            if not self._started:  # the middleware sends an HTTP error
                raise
            await self._send(self._error_event(error), send)
        finally:
            first_ping.cancel()
            for task in pinging:
                task.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = self._last_sent + self._ping_s - loop.time()
            if left <= 0:
                await self._send(PINGS[self._dialect], send)
                left = self._ping_s
            await asyncio.sleep(left)

    async def _send(self, event: bytes, send: Send) -> None:
        self._last_sent = asyncio.get_running_loop().time()
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": event, "more_body": True})

    def _error_event(self, error: Exception) -> bytes:
        if as_api_error(error) is None:
            _log.error("a stream failed", exc_info=error)
        reported = reported_error(error)
        if self._dialect == "anthropic":
            return f"event: error\ndata: {json.dumps(anthropic_body(reported))}\n\n".encode()
        return f"data: {json.dumps(openai_body(reported))}\n\n".encode()
