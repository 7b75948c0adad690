"""Who may go in, and when: places at the engine, a bounded queue before them, limits by key, pause and drain."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from midstream.core import clock
from midstream.gateway.config import KeyConfig, LimitsConfig
from midstream.gateway.http.errors import ApiError


@dataclass(slots=True)
class _Key:
    """What one key has used: calls of the last minute, and calls under way."""

    config: KeyConfig
    began: deque[float] = field(default_factory=deque[float])
    under_way: int = 0

    def admit(self) -> None:
        now = clock.monotonic()
        while self.began and self.began[0] <= now - 60:
            self.began.popleft()
        name, most, together = self.config.name, self.config.requests_per_minute, self.config.concurrency
        if most is not None and len(self.began) >= most:
            wait_s = self.began[0] + 60 - now
            raise ApiError(429, f"the key '{name}' may make {most} calls a minute", retry_after_s=wait_s)
        if together is not None and self.under_way >= together:
            raise ApiError(429, f"the key '{name}' may make {together} calls at once", retry_after_s=1)
        self.began.append(now)


class AdmissionController:
    """Lets calls through to the engine, in the order they came."""

    def __init__(self, limits: LimitsConfig, keys: tuple[KeyConfig, ...] = ()) -> None:
        self._limits = limits
        self._keys = {key.name: _Key(key) for key in keys}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.inside = 0
        """Calls the engine works on."""
        self._pauses: set[str] = set()
        self.closed = ""
        """Why no call is let in any more; empty while they are."""
        self._drained: asyncio.Event | None = None

    @property
    def paused(self) -> bool:
        return bool(self._pauses)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def entered(self, key: str | None) -> AsyncIterator[None]:
        """Inside, a place at the engine is held. Raises `ApiError`: 429 when the queue is full or the key's limit is
        reached, 503 when the gate is closed."""
        with self.counted(key):
            try:
                await self._enter()
                try:
                    yield
                finally:
                    self.inside -= 1
                    self._admit()
            finally:
                if self._drained is not None and not self.busy:
                    self._drained.set()

    @contextmanager
    def counted(self, key: str | None) -> Iterator[None]:
        """Inside, a call counts against the limits of `key`. Raises `ApiError`: 429 when one is reached, 503 when the
        gate is closed."""
        self.must_be_open()
        used = self._keys.get(key or "")
        if used is None:
            yield
            return
        used.admit()
        used.under_way += 1
        try:
            yield
        finally:
            used.under_way -= 1

    def pause(self, why: str) -> None:
        """Calls that come wait in the queue, until `resume` was called for each `why`; those under way go on."""
        self._pauses.add(why)

    def resume(self, why: str) -> None:
        self._pauses.discard(why)
        self._admit()

    def close(self, why: str) -> None:
        """Refuse new calls from now on; those under way or in the queue go on."""
        self.closed = self.closed or why

    def must_be_open(self) -> None:
        """`ApiError` 503 when the gate is closed."""
        if self.closed:
            raise ApiError(503, f"this gateway takes no calls any more: {self.closed}", retry_after_s=5)

    @property
    def busy(self) -> bool:
        """Whether a call is under way or waits."""
        return bool(self.inside or self._waiting)

    async def drained(self, within_s: float) -> None:
        """Return when no call is left, or when `within_s` have passed."""
        if self.busy and within_s > 0:
            self._drained = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), within_s)

    async def _enter(self) -> None:
        if not self.paused and not self._waiting and self.inside < self._limits.concurrency:
            self.inside += 1
            return
        if len(self._waiting) >= self._limits.queue:
            raise ApiError(429, f"{self._limits.queue} calls are waiting already", retry_after_s=1)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given a place, and gives it back
                self.inside -= 1
                self._admit()
            else:
                self._waiting.remove(place)
            raise

    def _admit(self) -> None:
        while self._waiting and not self.paused and self.inside < self._limits.concurrency:
            place = self._waiting.popleft()
            if not place.done():
                self.inside += 1
                place.set_result(None)
