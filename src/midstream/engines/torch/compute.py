"""The one thread of a process that runs models.

OpenMP keeps a team of workers for every thread that calls it, and as soon as all teams together have more threads than
the machine has processors, they sleep after each product and must be woken for the next. On two cores a sampler in one
thread and a learner in another so take half as long again as both in the same one, taking turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="compute")


def submit(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Have `function` called in the compute thread. Calls run one after another, in the order they were submitted."""
    return _THREAD.submit(function, *args, **kwargs)


async def compute(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in the compute thread while the event loop goes on; its result, or what it raised."""
    return await asyncio.wrap_future(submit(function, *args, **kwargs))
