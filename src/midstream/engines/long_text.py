"""Runs work on long text in a small thread pool beside the event loop, so that clients that send long text wait only
for each other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONG = 20_000
"""Length in characters from which text is rendered and encoded in a thread."""
MANY_MESSAGES = 200
"""Number of messages from which a conversation is rendered in a thread."""
_THREADS = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2), thread_name_prefix="long-text")


async def off_loop(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in one of the threads for long text."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: function(*args, **kwargs))
