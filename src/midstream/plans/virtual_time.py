"""Simulated hours for plans whose work is simulated: time jumps to the next end as soon as a run can only wait."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class VirtualTime:
    """The time of one simulated run. Handlers wait with `sleep`; pass `on_wait` to the `AgentExecutor` of the run.

    Time stands still while the run can start something or its policy chooses, and while a handler does anything but
    `sleep`. Handlers that end at the same time end together, before anything else starts."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._calls: int | None = None
        """Calls under way in the run that waits; None while it does not."""

    async def sleep(self, duration: float) -> None:
        """Return when `duration` has passed in virtual time."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleeping, (self.now + duration, next(self._numbers), ended))
        self._advance()
        await ended

    def on_wait(self, run: str, calls: int) -> None:
        """The run waits for one of `calls` calls; 0: it does not."""
        self._calls = calls or None
        self._advance()

    def _advance(self) -> None:
        if self._calls is None or len(self._sleeping) < self._calls:
            return
        self._calls = None
        self.now = self._sleeping[0][0]
        while self._sleeping and self._sleeping[0][0] == self.now:
            _, _, ended = heapq.heappop(self._sleeping)
            if not ended.done():
                ended.set_result(None)
