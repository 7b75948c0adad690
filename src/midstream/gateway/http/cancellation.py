"""Cancels work when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from midstream.gateway.http.errors import client_disconnected

T = TypeVar("T")
PATIENCE_S = 0.02
"""Delay before the connection is watched. Most answers are ready sooner, and need no task for it."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects first, cancel it and raise `ApiError` 499."""
    try:
        return await cancel_on_disconnect(work, request.receive)
    except ClientDisconnect:
        raise client_disconnected() from None


async def cancel_on_disconnect(work: Awaitable[T], receive: Receive) -> T:
    """Return the result of `work`. If the client disconnects first, cancel it and raise `ClientDisconnect`."""
    working = asyncio.current_task()
    assert working is not None
    disconnected, watching = False, list[asyncio.Task[None]]()

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        working.cancel()

    soon = asyncio.get_running_loop().call_later(PATIENCE_S, lambda: watching.append(asyncio.create_task(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if disconnected and not working.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        soon.cancel()
        for task in watching:
            task.cancel()
