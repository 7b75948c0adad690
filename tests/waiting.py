"""Waits for conditions in other threads, and a manual clock for tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LIMIT_S = 60.0
"""What a condition may take on a busy machine; nothing waits this long where it holds."""


def until(true: Callable[[], Any], within_s: float = LIMIT_S) -> Any:
    """Wait until a condition is true and return its value."""
    end = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < end, f"not true within {within_s:g} s"
        time.sleep(0.01)
    return value


class MovedClock:
    """A `midstream.core.clock.Clock` that only moves when advanced; sleepers wake when enough time has been added."""

    def __init__(self) -> None:
        self._began, self._passed = float(int(time.time())), 0.0
        self._lock = threading.Lock()
        self._sleeping: dict[asyncio.Future[None], float] = {}

    def time(self) -> float:
        return self._began + self._passed

    def monotonic(self) -> float:
        return 1000.0 + self._passed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return await asyncio.sleep(0)
        woken = asyncio.get_running_loop().create_future()
        with self._lock:
            self._sleeping[woken] = self._passed + seconds
        try:
            await woken
        finally:
            with self._lock:
                self._sleeping.pop(woken, None)

    @property
    def sleeping(self) -> int:
        """Number of tasks that sleep on this clock."""
        with self._lock:
            return len(self._sleeping)

    def advance(self, seconds: float) -> None:
        """Advance by `seconds`. Sleepers that are due are awake when this returns; those of the calling loop wake at
        the next `await`."""
        with self._lock:
            self._passed += seconds
            due = [woken for woken, at in self._sleeping.items() if at <= self._passed + 1e-9]
            for woken in due:
                del self._sleeping[woken]
        for loop in {woken.get_loop() for woken in due}:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_wake, [woken for woken in due if woken.get_loop() is loop])
                if loop is not _running_loop():
                    asyncio.run_coroutine_threadsafe(_some_turns(), loop).result(LIMIT_S)

    def advance_until(self, true: Callable[[], Any], step_s: float = 0.1) -> Any:
        """Advance by `step_s` repeatedly until a condition is true; returns its value."""

        def moved() -> Any:
            if not (value := true()):
                self.advance(step_s)
            return value

        return until(moved)


def _wake(sleeping: list[asyncio.Future[None]]) -> None:
    for woken in sleeping:
        if not woken.done():
            woken.set_result(None)


async def _some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
