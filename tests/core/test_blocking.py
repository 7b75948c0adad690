"""Synchronous calls run a coroutine with and without a running loop, and an interrupt reaches it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from midstream.core.blocking import run_blocking


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Make SIGINT raise KeyboardInterrupt, even if a shell ignores it for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def thread_of_mine() -> int:
    await asyncio.sleep(0)
    return threading.get_ident()


def test_without_a_loop_the_coroutine_runs_in_this_thread() -> None:
    assert run_blocking(thread_of_mine()) == threading.get_ident()


def test_with_a_running_loop_the_coroutine_runs_in_another_thread() -> None:
    async def cell() -> int:
        return run_blocking(thread_of_mine())

    assert asyncio.run(cell()) != threading.get_ident()


def test_exceptions_are_raised_in_the_caller() -> None:
    async def wrong() -> None:
        raise ValueError("mine")

    async def cell() -> None:
        run_blocking(wrong())

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(cell())


class Job:
    """Interrupts the main thread when it starts, and runs until it is stopped."""

    def __init__(self) -> None:
        self.stopped, self.ended = False, ""

    async def run(self) -> str:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            while not self.stopped:
                await asyncio.sleep(0.01)
            self.ended = "stopped"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        return self.ended

    def stop(self) -> None:
        self.stopped = True


def in_a_cell(job: Job, **options: object) -> str:
    """Run `job` from synchronous code inside a loop, without asyncio's own handling of Ctrl-C."""
    loop = asyncio.new_event_loop()

    async def cell() -> str:
        return run_blocking(job.run(), **options)  # type: ignore[arg-type]

    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


def test_an_interrupt_stops_the_job_and_waits_for_it() -> None:
    job = Job()
    assert in_a_cell(job, interrupt=job.stop) == "stopped"


def test_without_an_interrupt_function_the_job_is_cancelled() -> None:
    job = Job()
    with pytest.raises(KeyboardInterrupt):
        in_a_cell(job)
    assert job.ended == "cancelled"
