"""The clock of expiries, leases, heartbeats and retries. Code that acts when time has passed reads it here and sleeps
here, so that a test can move it (`use`).

Durations that are only reported are measured with `time.perf_counter`."""

from __future__ import annotations

import asyncio
import time as _time
from typing import Protocol


class Clock(Protocol):
    """What `use` takes. Called from any thread; `sleep` from any event loop."""

    def time(self) -> float:
        """Seconds since 1970, comparable between processes."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        return _time.time()

    def monotonic(self) -> float:
        return _time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_clock: Clock = SystemClock()


def use(clock: Clock) -> Clock:
    """Read `clock` from now on, in the whole process; returns the clock used before."""
    global _clock
    before, _clock = _clock, clock
    return before


def time() -> float:
    """Seconds since 1970."""
    return _clock.time()


def monotonic() -> float:
    """Seconds since some moment; never goes back."""
    return _clock.monotonic()


async def sleep(seconds: float) -> None:
    """Let others run for `seconds`."""
    await _clock.sleep(seconds)
