"""Calls a reward component with a time limit, in a separate thread when it is sync, and returns exceptions as
values."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from midstream.core.errors import EngineError

_OUTAGES = frozenset(
    (
        "TransportError",  # httpx
        "APIConnectionError",  # openai, anthropic; APITimeoutError is one
        "InternalServerError",
        "RateLimitError",
        "RequestException",  # requests
        "ClientConnectionError",  # aiohttp
    )
)
"""Exception class names of HTTP clients that mean a service could not be reached."""

_LIMIT: contextvars.ContextVar[tuple[asyncio.AbstractEventLoop, asyncio.Timeout] | None] = contextvars.ContextVar(
    "limit of the call", default=None
)


@dataclass(frozen=True, slots=True)
class CallResult:
    """Result of a call: a value or an exception."""

    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False
    """Whether the time limit was exceeded."""


async def call_with_timeout(function: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> CallResult:
    """Call `function`, awaiting its result if needed, for at most `timeout_s`.

    A sync function that exceeds the limit continues in its thread and its result is discarded. `KeyboardInterrupt` and
    cancellation of the waiting task are raised; all other exceptions, including `SystemExit`, are returned.
    """
    limit = asyncio.timeout(timeout_s)
    token = _LIMIT.set((asyncio.get_running_loop(), limit))
    try:
        async with limit:
            if inspect.iscoroutinefunction(function):
                return CallResult(await function(**arguments))
            result = await _in_thread(function, arguments)
            if result.error is None and inspect.isawaitable(result.value):
                return CallResult(await result.value)
            return result
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return CallResult(error=error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit of a reward function must not end the program
        return CallResult(error=error, timed_out=isinstance(error, TimeoutError) and limit.expired())
    finally:
        _LIMIT.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Exclude the time inside from the limit of the sync component that runs in this thread: for waiting until other
    calls have finished with a shared resource. Does nothing outside a call."""
    if (found := _LIMIT.get()) is None:
        yield
        return
    loop, limit = found
    began = loop.time()

    def extend(when: float | None) -> None:
        with suppress(RuntimeError):  # the call is over, or timed out already
            limit.reschedule(when)

    due = limit.when()
    _call_in(loop, extend, None)
    try:
        yield
    finally:
        _call_in(loop, extend, None if due is None else due + loop.time() - began)


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with suppress(RuntimeError):  # the loop may have ended before the thread did
        loop.call_soon_threadsafe(function, *arguments)


def is_outage(error: BaseException | None) -> bool:
    """Return whether `error` or one of its causes means that a service could not be reached or could not answer. A
    response with another status than 408, 429 or 5xx is an answer."""
    seen = 0
    while error is not None and seen < 10:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status in (408, 429) or status >= 500
        if isinstance(error, EngineError | ConnectionError | TimeoutError | socket.gaierror):
            return True
        if any(kind.__name__ in _OUTAGES for kind in type(error).__mro__):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _in_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Awaitable[CallResult]:
    """Run `function` in a daemon thread, so that a function that never ends blocks neither other calls nor the
    program's exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[CallResult] = loop.create_future()
    context = contextvars.copy_context()

    def resolve(result: CallResult) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        try:
            result = CallResult(context.run(function, **arguments))
        except BaseException as error:  # passed to the awaiting task
            result = CallResult(error=error)
        _call_in(loop, resolve, result)

    threading.Thread(target=run, name=f"reward {getattr(function, '__name__', '')}", daemon=True).start()
    return done
