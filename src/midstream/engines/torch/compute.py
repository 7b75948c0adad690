"""The process's single thread for model computation.

OpenMP keeps a team of workers for every calling thread. Once all teams together have more threads than the machine has
processors, they sleep after each product and must be woken for the next. On two cores a sampler and a learner in
separate threads therefore take half as long again as both in one thread, alternating."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="compute")


def submit(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Call `function` in the compute thread. Calls run sequentially, in the order they were submitted."""
    return _THREAD.submit(function, *args, **kwargs)


async def compute(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in the compute thread without blocking the event loop; return its result or raise its error."""
    return await asyncio.wrap_future(submit(function, *args, **kwargs))
