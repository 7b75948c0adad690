"""Calls that can be held up, so that weights change while none is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pause:
    """Calls go through `call`; `pause` has new ones wait."""

    def __init__(self) -> None:
        self._pauses = 0
        self._under_way = 0
        self._resumed = self._quiet = asyncio.Event()

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """One call, from when nothing is paused."""
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
        """Have new calls wait until `resume` was called as often; returns when those under way have finished."""
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
        """Let calls through again."""
        self._pauses -= 1
        if not self._pauses:
            self._resumed.set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Inside, no call is under way."""
        await self.pause()
        try:
            yield
        finally:
            self.resume()
