"""Clock for expiries, leases, heartbeats and retries. Code that acts on elapsed time reads the time and sleeps through
this module, so that tests can replace the clock (`use`).

Durations that are only reported are measured with `time.perf_counter`."""

from __future__ import annotations

import asyncio
import time as _time
from typing import Protocol


class Clock(Protocol):
    """Source of time. Its methods may be called from any thread, `sleep` from any event loop."""

    def time(self) -> float:
        """Return seconds since 1970, comparable between processes."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; never decreases."""
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
    """Use `clock` in the whole process from now on; return the previous clock."""
    global _clock
    before, _clock = _clock, clock
    return before


def time() -> float:
    """Return seconds since 1970."""
    return _clock.time()


def monotonic() -> float:
    """Return seconds since an arbitrary moment; never decreases."""
    return _clock.monotonic()


async def sleep(seconds: float) -> None:
    """Wait for `seconds` without blocking the event loop."""
    await _clock.sleep(seconds)
