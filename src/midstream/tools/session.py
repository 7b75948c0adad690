"""`Toolbox` and `ToolSession`: an agent's tools, and one trajectory's use of them.

A session validates a call, runs it with a time limit and a budget, and converts every outcome to a `ToolCall` the
model can read. Errors of a tool never propagate. It cannot stop a synchronous tool that never returns, which keeps its
(daemon) thread, or an async tool that blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midstream.core.errors import ConfigError, nearest
from midstream.core.seeds import derive_seed
from midstream.core.text import cleaned
from midstream.core.types import ToolCall
from midstream.tools.arguments import validate_arguments
from midstream.tools.declare import Tool, ToolError
from midstream.tools.mask import mask_retrieved_tokens

MIN_RESULT_CHARS = 80
MAX_NAME_CHARS = 64
"""Maximum length of a tool's name; longer ones written by a model are truncated when recorded."""


@dataclass(frozen=True)
class Toolbox:
    """A fixed set of tools. `max_calls` limits a trajectory's calls, `max_result_chars` the length of a result. `mask`
    maps tool names to the fraction of their results that a session with a `mask_seed` hides."""

    tools: Sequence[Tool[..., Any]]
    max_calls: int | None = None
    max_result_chars: int = 2000
    mask: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two tools are named '{twice[0]}'", "rename one with @tool(name=...)")
        if self.max_calls is not None and self.max_calls < 0:
            raise ConfigError(f"max_calls must not be negative, not {self.max_calls}")
        if self.max_result_chars < MIN_RESULT_CHARS:
            raise ConfigError(f"max_result_chars must be at least {MIN_RESULT_CHARS}, not {self.max_result_chars}")
        for name, ratio in self.mask.items():
            if name not in names:
                raise ConfigError(
                    f"results of the tool '{name}' are to be masked, but it is not there", nearest(name, names)
                )
            if not 0 <= ratio <= 1:
                raise ConfigError(f"the share of the results of '{name}' to mask is from 0 to 1, not {ratio}")

    def get(self, name: str) -> Tool[..., Any] | None:
        """Return the tool of that name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def cards(self) -> str:
        """Return one line per tool, for a prompt."""
        return "\n".join(tool.card for tool in self.tools)

    def session(self, mask_seed: int | None = None) -> ToolSession:
        """Start a session with a fresh budget, for one trajectory. `mask_seed` determines which words of results `mask`
        hides; None hides none."""
        return ToolSession(self, mask_seed)


class ToolSession:
    """One trajectory's calls. Only executed calls count against the budget; rejected ones do not."""

    def __init__(self, toolbox: Toolbox, mask_seed: int | None = None) -> None:
        self.toolbox = toolbox
        self._mask_seed = mask_seed
        self.calls_made = 0

    @property
    def remaining(self) -> int | None:
        """Number of calls left; None without a limit."""
        limit = self.toolbox.max_calls
        return None if limit is None else max(0, limit - self.calls_made)

    def validate(self, name: str, arguments: Any) -> list[str]:
        """Return what is wrong with a call, in words a model can act on; empty if it is valid."""
        tool = self.toolbox.get(name)
        if tool is None:
            return [self._unknown(name)]
        return validate_arguments(tool, arguments).problems

    async def call(self, name: str, arguments: Any, step_index: int | None = None) -> ToolCall:
        """Run a tool. A failure is a `ToolCall` with `ok` False, an `error_kind`, and the reason as its result."""
        started = time.perf_counter()

        def finished(error_kind: str, result: str, used: Mapping[str, Any]) -> ToolCall:
            whole = _storable(f"Error: {result}" if error_kind else result)
            shown = whole if error_kind else self._masked(name, whole)
            return ToolCall(
                tool=_storable(str(name)[:MAX_NAME_CHARS]),
                arguments=used,
                ok=not error_kind,
                result=_shorten(shown, self.toolbox.max_result_chars),
                error_kind=error_kind,
                latency_s=time.perf_counter() - started,
                step_index=step_index,
                unmasked="" if shown == whole else _shorten(whole, self.toolbox.max_result_chars),
            )

        given = arguments if isinstance(arguments, Mapping) else {}
        tool = self.toolbox.get(name)
        if tool is None:
            return finished("unknown_tool", self._unknown(name), given)
        checked = validate_arguments(tool, arguments)
        if checked.problems:
            return finished("invalid_arguments", f"{'; '.join(checked.problems)}. Use {tool.signature}", given)
        if self.remaining == 0:
            return finished("over_budget", f"no tool calls are left (at most {self.toolbox.max_calls})", checked.raw)
        self.calls_made += 1
        error_kind, result = await _run(tool, checked.values)
        return finished(error_kind, result, checked.raw)

    def _masked(self, name: str, result: str) -> str:
        ratio = self.toolbox.mask.get(name, 0.0)
        if self._mask_seed is None or not ratio:
            return result
        return mask_retrieved_tokens(result, ratio, seed=derive_seed(self._mask_seed, name))

    def _unknown(self, name: str) -> str:
        name = str(name)[:MAX_NAME_CHARS]
        if not self.toolbox.tools:
            return f"unknown tool '{name}'; there are no tools"
        return f"unknown tool '{name}'; {nearest(name, [tool.name for tool in self.toolbox.tools])}"


async def _run(tool: Tool[..., Any], values: Mapping[str, Any]) -> tuple[str, str]:
    """Run a tool once within its time limit; return `(error_kind, text)`."""
    is_async = inspect.iscoroutinefunction(tool.function)
    work = _guarded(tool.function, values) if is_async else _in_thread(tool.function, values)
    task = asyncio.create_task(work)
    try:
        # `wait`, not `wait_for`: a tool that ignores its cancellation must not block the trajectory.
        await asyncio.wait({task}, timeout=tool.timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not task.done():
        task.cancel()
        return "timeout", f"{tool.name} took longer than {tool.timeout_s:g} s"
    if task.cancelled():
        return "raised", f"{tool.name} was cancelled"
    return task.result()


async def _guarded(function: Callable[..., Any], values: Mapping[str, Any]) -> tuple[str, str]:
    try:
        return "", _text(await function(**values))
    except (Exception, SystemExit) as error:
        return "raised", _reason(error)


async def _in_thread(function: Callable[..., Any], values: Mapping[str, Any]) -> tuple[str, str]:
    """Run in a new daemon thread. In a shared pool a few hung tools would block every other trajectory, and prevent the
    process from exiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[str, Any]] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(outcome: tuple[str, Any]) -> None:
        if not future.done():
            future.set_result(outcome)

    def work() -> None:
        try:
            result = context.run(function, **values)
            outcome = ("", result if inspect.isawaitable(result) else _text(result))
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt: in this thread only the tool itself can have raised them.
            outcome = ("raised", _reason(error))
        try:
            loop.call_soon_threadsafe(deliver, outcome)
        except RuntimeError:
            return  # The loop closed after the time limit; no one waits for this result.

    threading.Thread(target=work, name=f"tool-{getattr(function, '__name__', 'call')}", daemon=True).start()
    error_kind, result = await future
    # A plain function may wrap an async one; its result is then awaited on the loop.
    return await _guarded(lambda: result, {}) if inspect.isawaitable(result) else (error_kind, result)


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, (dict, list, tuple)):
        return json.dumps(result, ensure_ascii=False, default=str)
    return str(result)


def _reason(error: BaseException) -> str:
    if isinstance(error, ToolError):
        return str(error)
    try:
        message = str(error)
    except Exception as broken:
        # The model must receive a message even if the exception's own text raises.
        message = f"(its message raised {type(broken).__name__})"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _storable(text: str) -> str:
    """Return `text` without characters that UTF-8 or a database column cannot hold: lone surrogates and NUL."""
    return cleaned(text).replace("\x00", "\ufffd")


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f" ... [cut: {len(text)} characters in all]"
    return text[: limit - len(mark)] + mark
