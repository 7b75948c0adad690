"""Admits calls to the engine: concurrency, a bounded queue, limits per key, pause and drain."""

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
class _KeyUsage:
    """Usage of one key: start times of the last minute's calls, and calls in progress."""

    config: KeyConfig
    began: deque[float] = field(default_factory=deque[float])
    running: int = 0

    def count_call(self) -> None:
        """Count a new call. Raises `ApiError` 429 above a limit."""
        now = clock.monotonic()
        while self.began and self.began[0] <= now - 60:
            self.began.popleft()
        name, per_minute, concurrency = self.config.name, self.config.requests_per_minute, self.config.concurrency
        if per_minute is not None and len(self.began) >= per_minute:
            wait_s = self.began[0] + 60 - now
            raise ApiError(429, f"the key '{name}' may make {per_minute} calls a minute", retry_after_s=wait_s)
        if concurrency is not None and self.running >= concurrency:
            raise ApiError(429, f"the key '{name}' may make {concurrency} calls at once", retry_after_s=1)
        self.began.append(now)


class AdmissionController:
    """Admits calls to the engine in order of arrival."""

    def __init__(self, limits: LimitsConfig, keys: tuple[KeyConfig, ...] = ()) -> None:
        self._limits = limits
        self._usage = {key.name: _KeyUsage(key) for key in keys}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0
        """Calls in the engine."""
        self._pauses: set[str] = set()
        self.closed = ""
        """Reason why new calls are refused; empty while they are admitted."""
        self._drained: asyncio.Event | None = None

    @property
    def paused(self) -> bool:
        return bool(self._pauses)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def admitted(self, key: str | None) -> AsyncIterator[None]:
        """Hold a place in the engine. Raises `ApiError`: 429 if the queue is full or a limit of the key is reached,
        503 after `close`."""
        with self.counted(key):
            try:
                await self._enter()
                try:
                    yield
                finally:
                    self.running -= 1
                    self._admit()
            finally:
                if self._drained is not None and not self.busy:
                    self._drained.set()

    @contextmanager
    def counted(self, key: str | None) -> Iterator[None]:
        """Count a call against the limits of `key`. Raises `ApiError`: 429 if one is reached, 503 after `close`."""
        self.require_open()
        usage = self._usage.get(key or "")
        if usage is None:
            yield
            return
        usage.count_call()
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    def pause(self, reason: str) -> None:
        """Make new calls wait until `resume` was called for each reason. Calls in progress continue."""
        self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        self._pauses.discard(reason)
        self._admit()

    def close(self, reason: str) -> None:
        """Refuse new calls from now on. Calls in progress or in the queue continue."""
        self.closed = self.closed or reason

    def require_open(self) -> None:
        """Raise `ApiError` 503 after `close`."""
        if self.closed:
            raise ApiError(503, f"this gateway no longer takes calls: {self.closed}", retry_after_s=5)

    @property
    def busy(self) -> bool:
        """Whether a call is in progress or waits."""
        return bool(self.running or self._waiting)

    async def drain(self, timeout_s: float) -> None:
        """Wait until no call is left, at most `timeout_s`."""
        if self.busy and timeout_s > 0:
            self._drained = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), timeout_s)

    async def _enter(self) -> None:
        if not self.paused and not self._waiting and self.running < self._limits.concurrency:
            self.running += 1
            return
        if len(self._waiting) >= self._limits.queue:
            raise ApiError(429, f"{self._limits.queue} calls already wait", retry_after_s=1)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # admitted meanwhile: give the place to the next
                self.running -= 1
                self._admit()
            else:
                self._waiting.remove(place)
            raise

    def _admit(self) -> None:
        while self._waiting and not self.paused and self.running < self._limits.concurrency:
            place = self._waiting.popleft()
            if not place.done():
                self.running += 1
                place.set_result(None)
