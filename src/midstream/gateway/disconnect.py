"""Work for a client that may hang up before it is done: then it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from midstream.gateway.errors import ApiError

T = TypeVar("T")


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

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if watching.done() and not watching.cancelled() and not working.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
