"""The one thread of a process that runs models.

OpenMP keeps a team of workers for every thread that calls it, and as soon as all teams together have more threads than
the machine has processors, they sleep after each product and must be woken for the next. On two cores a sampler in one
thread and a learner in another so take half as long again as both in the same one, taking turns."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="compute")

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def _keep_memory() -> None:
    """Have glibc keep what is freed for what is asked for next. By default it hands every large tensor back to the
    system, and a page of the next one costs a fault at its first touch: a third of a forward pass. Before there are
    threads, as each takes its heap when it begins."""
    libc = _libc()
    if libc is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def submit(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Have `function` called in the compute thread. Calls run one after another, in the order they were submitted."""
    return _THREAD.submit(function, *args, **kwargs)


async def compute(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in the compute thread while the event loop goes on; its result, or what it raised."""
    return await asyncio.wrap_future(submit(function, *args, **kwargs))


def trim() -> None:
    """Give memory that is free back to the system. Tensors of ever other sizes leave holes in glibc's heap, which would
    grow by a gigabyte over a run. Elsewhere than on glibc this does nothing."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    """glibc, where this is it."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


_keep_memory()
