"""Runs a coroutine from synchronous code, even when an event loop is already running, as in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def run_blocking(coroutine: Coroutine[Any, Any, T], interrupt: Callable[[], None] | None = None) -> T:
    """Run `coroutine` and return its result.

    If a loop is running in this thread, the coroutine runs in a new thread with its own loop, and this call blocks. The
    first KeyboardInterrupt calls `interrupt` in that loop and keeps waiting. Without `interrupt`, or at the second
    KeyboardInterrupt, the coroutine is cancelled and the KeyboardInterrupt is raised.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass  # run it outside of this handler, or its exceptions would have this error as their context
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
