"""The events of a plan's run as server-sent events, from a cursor on and as they come."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from midstream.core import clock
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.event_stream import EventStream
from midstream.gateway.service import Gateway
from midstream.plans import AgentExecutor
from midstream.plans.errors import NoSuchRun
from midstream.plans.journal import Event, load_row
from midstream.plans.rows import RunRow
from midstream.plans.states import ENDED

POLL_S = 0.25
RETRY_MS = 1000
"""Milliseconds after which a browser whose connection ended connects again."""
_NUMBER = re.compile(r"[0-9]{1,18}")


async def events_response(request: Request, gateway: Gateway, executor: AgentExecutor, run: str) -> Response:
    """A stream of the events of `run` after the cursor of the request. It ends with the event `end` when the run has
    ended. 204, which keeps a browser from connecting again, if there is nothing left. Raises `ApiError` 400 and 404."""
    after = _cursor(request)
    row = await _row(executor, run)
    if row.status in ENDED and row.seq <= after:
        return Response(status_code=204)
    return EventStream(_events(gateway, executor, run, after), "openai", gateway.config.limits.ping_s)


async def _events(gateway: Gateway, executor: AgentExecutor, run: str, after: int) -> AsyncGenerator[bytes]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    while True:
        row = await _row(executor, run)  # read before its events: none is missing when it has ended
        async for event in executor.events(run, after):
            yield _encoded(event)
            after = event.seq
        if row.status in ENDED:
            yield f"event: end\ndata: {json.dumps({'run': run, 'status': row.status})}\n\n".encode()
            return
        if gateway.admission.closed:
            return  # the client connects again, to the gateway that takes over
        await clock.sleep(POLL_S)


async def _row(executor: AgentExecutor, run: str) -> RunRow:
    try:
        return await asyncio.to_thread(executor.database.read, lambda connection: load_row(connection, run))
    except NoSuchRun as error:
        raise ApiError(404, error.message) from None


def _encoded(event: Event) -> bytes:
    return f"id: {event.seq}\ndata: {json.dumps(asdict(event))}\n\n".encode()


def _cursor(request: Request) -> int:
    """Number of the last event that the client has: of the header with which a browser connects again, else of the
    query."""
    header = request.headers.get("last-event-id", "").strip()
    name, text = ("Last-Event-ID", header) if header else ("after", request.query_params.get("after", "0"))
    if not _NUMBER.fullmatch(text):
        raise ApiError(400, f"'{name}' takes the number of an event", param=name)
    return int(text)
