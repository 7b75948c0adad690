"""`FunctionToolset`: Python functions declared with `@tool`, as a `Toolset`.

A synchronous function runs in a (daemon) thread of its own, which continues when the call is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.errors import nearest
from midstream.core.toolsets import ToolResult, ToolSpec
from midstream.tools.arguments import validate_arguments
from midstream.tools.declare import Tool
from midstream.tools.errors import ToolError, reason
from midstream.tools.threads import ReusedThreads

_threads = ReusedThreads("tool")


class FunctionToolset:
    """A fixed set of function tools. `open` and `close` do nothing."""

    def __init__(self, tools: Sequence[Tool[..., Any]]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools."""
        return list(self._tools.values())

    async def open(self) -> None: ...

    async def list(self) -> Sequence[ToolSpec]:
        return self.specs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Validate `arguments` and run the function. Propagates its exceptions; raises `ToolError` for an invalid
        call."""
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(f"unknown tool '{name}'; {nearest(name, self._tools)}")
        checked = validate_arguments(tool, arguments)
        if checked.problems:
            raise ToolError("; ".join(checked.problems))
        if inspect.iscoroutinefunction(tool.function):
            return ToolResult.of(await tool.function(**checked.values))
        return await _in_thread(tool, checked.values)

    async def close(self) -> None: ...


async def _in_thread(tool: Tool[..., Any], values: Mapping[str, Any]) -> ToolResult:
    """Run in a daemon thread that no other call uses."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            value = context.run(tool.function, **values)
            result = value if inspect.isawaitable(value) else ToolResult.of(value)
        except BaseException as raised:
            # SystemExit and KeyboardInterrupt too: in this thread only the tool itself can have raised them. A future
            # takes no StopIteration.
            if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
                error = raised
            else:
                error = ToolError(reason(raised))
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            return  # The loop closed after the time limit, and nobody waits for this any more.

    _threads.run(work)
    result = await future
    # A plain function may wrap an async one; its awaitable belongs to this loop.
    return ToolResult.of(await result) if inspect.isawaitable(result) else result
