"""`SharedResources`: resources that trajectories of an event loop share; the first opens one, the last closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


@dataclass(slots=True)
class _Shared(Generic[T]):
    resource: asyncio.Task[T]
    users: int = 0


class SharedResources(Generic[T]):
    """Resources by key, one per key and event loop. Every `acquire` needs a `release`."""

    def __init__(self, close: Callable[[T], Awaitable[None]]) -> None:
        self._close = close
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared[T]]] = WeakKeyDictionary()

    async def acquire(self, key: str, open_resource: Callable[[], Awaitable[T]]) -> T:
        """Return the resource of `key`; the first user opens it. If opening raises, all waiting users get the error."""
        of_loop = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        shared = of_loop.get(key)
        if shared is None:
            shared = of_loop[key] = _Shared(asyncio.ensure_future(_call(open_resource)))
        shared.users += 1
        try:
            return await asyncio.shield(shared.resource)
        except BaseException:
            await self.release(key)
            raise

    async def release(self, key: str) -> None:
        """Release the resource; the last user closes it."""
        of_loop = self._by_loop[asyncio.get_running_loop()]
        shared = of_loop[key]
        shared.users -= 1
        if shared.users > 0:
            return
        del of_loop[key]
        if not shared.resource.done():
            shared.resource.cancel()
            await asyncio.wait([shared.resource])
        if not shared.resource.cancelled() and shared.resource.exception() is None:
            await self._close(shared.resource.result())


async def _call(open_resource: Callable[[], Awaitable[T]]) -> T:
    return await open_resource()
