"""Work for a client that may hang up before it is done: then it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from midstream.gateway.http.errors import ApiError

T = TypeVar("T")
PATIENCE_S = 0.02
"""From when on it is looked whether the client is still there."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless the client hangs up first: then it is cancelled."""
    try:
        return await raced(work, request.receive)
    except ClientDisconnect:
        raise ApiError(499, "the client hung up", code="client_closed_request") from None


async def raced(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`; `ClientDisconnect`, and `work` cancelled, when the client hangs up first."""
    working = asyncio.current_task()
    assert working is not None

    gone, watching = False, list[asyncio.Task[None]]()

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        working.cancel()

    # Most answers are there before anybody who means to hang up does.
    soon = asyncio.get_running_loop().call_later(PATIENCE_S, lambda: watching.append(asyncio.create_task(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not working.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        soon.cancel()
        for task in watching:
            task.cancel()
