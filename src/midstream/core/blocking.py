"""Runs a coroutine from synchronous code, also where an event loop runs already, as it does in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def run_blocking(coroutine: Coroutine[Any, Any, T], interrupt: Callable[[], None] | None = None) -> T:
    """Run `coroutine` to its end and return its result.

    Where a loop runs in this thread, the coroutine gets a thread and a loop of its own, and this call blocks. A
    KeyboardInterrupt meanwhile calls `interrupt` in that loop and goes on waiting; without it, and from the second one
    on, the coroutine is cancelled and the KeyboardInterrupt raised.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass  # not run here: whatever the coroutine raises would have this error as its context
    else:
        return _in_thread(coroutine, interrupt)
    return asyncio.run(coroutine)


def _in_thread(coroutine: Coroutine[Any, Any, T], interrupt: Callable[[], None] | None) -> T:
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
    done: Future[T] = Future()

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await coroutine

    def run() -> None:
        try:
            result = asyncio.run(main())
        except BaseException as error:  # raised again in the thread that waits
            done.set_exception(error)
        else:
            done.set_result(result)

    thread = threading.Thread(target=run, name="midstream", daemon=True)
    try:
        thread.start()
        return done.result()
    except KeyboardInterrupt:
        if done.done():
            raise
        loop, task = started.result()
        if interrupt is None:
            _cancel(loop, task, thread)
            raise
        loop.call_soon_threadsafe(interrupt)
    try:
        return done.result()
    except KeyboardInterrupt:
        _cancel(*started.result(), thread)
        raise


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], thread: threading.Thread) -> None:
    if thread.is_alive():
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
