"""Pauses calls so that weights can change while none is running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pause:
    """Gate for calls: they run inside `call`; `pause` makes new ones wait."""

    def __init__(self) -> None:
        self._pauses = 0
        self._under_way = 0
        self._resumed = self._quiet = asyncio.Event()

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Run one call; waits while paused."""
        while self._pauses:
            await self._resumed.wait()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    async def pause(self) -> None:
        """Make new calls wait until a matching `resume`; returns once running calls have finished. Nests."""
        if not self._pauses:
            self._resumed, self._quiet = asyncio.Event(), asyncio.Event()
        self._pauses += 1
        try:
            if self._under_way:
                await self._quiet.wait()
        except BaseException:
            self.resume()
            raise

    def resume(self) -> None:
        """Undo one `pause`."""
        self._pauses -= 1
        if not self._pauses:
            self._resumed.set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Pause inside the context: no call is running."""
        await self.pause()
        try:
            yield
        finally:
            self.resume()
