"""Calling a component: bounded in time, in a thread of its own when it is sync, and whatever it raises is a value."""

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
"""Names of exception classes of HTTP clients that mean that nobody answered, wherever they are defined."""

_LIMIT: contextvars.ContextVar[tuple[asyncio.AbstractEventLoop, asyncio.Timeout] | None] = contextvars.ContextVar(
    "limit of the call", default=None
)


@dataclass(frozen=True, slots=True)
class Called:
    """What a call came to: a value, or what it raised."""

    value: Any = None
    error: BaseException | None = None
    late: bool = False
    """Whether it took longer than it may."""


async def call(function: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> Called:
    """Call `function`, awaiting what is to be awaited, for at most `timeout_s`.

    A sync function that takes longer goes on in its thread, unheard. `KeyboardInterrupt` and the cancellation of the
    task that waits are raised; everything else, `SystemExit` included, is returned.
    """
    limit = asyncio.timeout(timeout_s)
    token = _LIMIT.set((asyncio.get_running_loop(), limit))
    try:
        async with limit:
            if inspect.iscoroutinefunction(function):
                return Called(await function(**arguments))
            called = await _in_thread(function, arguments)
            if called.error is None and inspect.isawaitable(called.value):
                return Called(await called.value)
            return called
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return Called(error=error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit of a reward function must not end the program
        return Called(error=error, late=isinstance(error, TimeoutError) and limit.expired())
    finally:
        _LIMIT.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Inside, in the thread of a sync component, no time counts towards the limit of its call: for waiting until other
    calls are done with what they share. Outside of a call it does nothing."""
    if (found := _LIMIT.get()) is None:
        yield
        return
    loop, limit = found
    began = loop.time()

    def extend(when: float | None) -> None:
        with suppress(RuntimeError):  # the call is over, or late already
            limit.reschedule(when)

    due = limit.when()
    _tell(loop, extend, None)
    try:
        yield
    finally:
        _tell(loop, extend, None if due is None else due + loop.time() - began)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with suppress(RuntimeError):  # the loop may have ended before the thread did
        loop.call_soon_threadsafe(function, *arguments)


def is_outage(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, says that a service was not there or could not answer. A response
    with another status than 408, 429 or 5xx is an answer."""
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


def _in_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Awaitable[Called]:
    """Run `function` in a daemon thread: one that never ends holds up neither other calls nor the end of the program,
    as it would in a pool."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Called] = loop.create_future()
    context = contextvars.copy_context()

    def tell(called: Called) -> None:
        if not done.done():
            done.set_result(called)

    def run() -> None:
        try:
            called = Called(context.run(function, **arguments))
        except BaseException as error:  # handed to who awaits it
            called = Called(error=error)
        _tell(loop, tell, called)

    threading.Thread(target=run, name=f"reward {getattr(function, '__name__', '')}", daemon=True).start()
    return done
