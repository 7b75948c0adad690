"""Work on long text beside an event loop: few threads, so that whoever sends much waits for others who do, and nobody
else waits for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONG = 20_000
"""Characters from which text is rendered and encoded in a thread."""
MANY_MESSAGES = 200
"""Messages from which a conversation is rendered there too."""
_THREADS = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2), thread_name_prefix="long-text")


async def off_loop(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns, called in one of the threads for long text."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: function(*args, **kwargs))
