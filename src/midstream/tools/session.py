"""`Toolbox` and `ToolSession`: the tools of an agent, and one trajectory's use of them.

A session validates each call, runs it within a time limit and a budget, and turns the outcome into a `ToolCall` that
the model can read. A failing tool never raises here. Two things it cannot stop: a synchronous tool that never returns
keeps its (daemon) thread, and an async tool that blocks the event loop blocks it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midstream.core.errors import ConfigError, nearest
from midstream.core.seeds import derive_seed
from midstream.core.text import cleaned
from midstream.core.toolsets import Toolset, ToolSpec
from midstream.core.types import ToolCall
from midstream.tools.arguments import validate_arguments
from midstream.tools.declare import Tool
from midstream.tools.mask import mask_retrieved_tokens
from midstream.tools.toolset import FunctionToolset, reason

MIN_RESULT_CHARS = 80
MAX_NAME_CHARS = 64
"""Longest name of a tool; a longer name written by a model is cut when it is recorded."""


@dataclass(frozen=True)
class Toolbox:
    """The function tools of every trajectory, and its limits.

    `max_calls` bounds a trajectory's calls, `max_result_chars` the length of a result. `mask` is the share of a tool's
    results, by its name, that a session with a `mask_seed` hides."""

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
        """The tools of one trajectory, with a full budget. `mask_seed` decides which words of results `mask` hides;
        None hides none."""
        return ToolSession(self, mask_seed)


class ToolSession:
    """The tools of one trajectory: those of the toolbox and of every added toolset. Only calls that run count against
    the budget; refused ones are free."""

    def __init__(self, toolbox: Toolbox, mask_seed: int | None = None) -> None:
        self.toolbox = toolbox
        self._mask_seed = mask_seed
        functions = FunctionToolset(toolbox.tools)
        self._tools: dict[str, tuple[ToolSpec, Toolset]] = {tool.name: (tool, functions) for tool in toolbox.tools}
        self.calls_made = 0

    @property
    def tools(self) -> list[ToolSpec]:
        """All tools, in the order they were added."""
        return [tool for tool, _ in self._tools.values()]

    def get(self, name: str) -> ToolSpec | None:
        """The tool of that name, or None."""
        return self._find(name)[0]

    def cards(self) -> str:
        """One line a tool, for a prompt."""
        return "\n".join(tool.card for tool in self.tools)

    async def add(self, toolset: Toolset) -> None:
        """Offer the tools of an open `toolset`, within the budget and limits of this session.

        Raises `ConfigError` for a name that is taken or cannot be a tool's, and for an invalid schema."""
        from midstream.tools.json_schema import check_schema

        added: dict[str, tuple[ToolSpec, Toolset]] = {}
        for tool in await toolset.list():
            check_schema(tool)
            if tool.name in self._tools or tool.name in added:
                raise ConfigError(f"two tools are named '{tool.name}'", "give one of them another name")
            added[tool.name] = (tool, toolset)
        self._tools |= added

    @property
    def remaining(self) -> int | None:
        """Number of calls left; None without a limit."""
        limit = self.toolbox.max_calls
        return None if limit is None else max(0, limit - self.calls_made)

    def validate(self, name: str, arguments: Any) -> list[str]:
        """Problems of a call, in words a model can act on; empty for a valid call."""
        tool = self.get(name)
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
        tool, toolset = self._find(name)
        if tool is None or toolset is None:
            return finished("unknown_tool", self._unknown(name), given)
        checked = validate_arguments(tool, arguments)
        if checked.problems:
            return finished("invalid_arguments", f"{'; '.join(checked.problems)}. Use {tool.signature}", given)
        if self.remaining == 0:
            return finished("over_budget", f"no tool calls are left (at most {self.toolbox.max_calls})", checked.raw)
        self.calls_made += 1
        error_kind, result = await _run(tool, toolset, checked.raw)
        return finished(error_kind, result, checked.raw)

    def _find(self, name: Any) -> tuple[ToolSpec, Toolset] | tuple[None, None]:
        """The tool and its toolset. `name` may be anything a model wrote."""
        return self._tools.get(name, (None, None)) if isinstance(name, str) else (None, None)

    def _masked(self, name: str, result: str) -> str:
        ratio = self.toolbox.mask.get(name, 0.0)
        if self._mask_seed is None or not ratio:
            return result
        return mask_retrieved_tokens(result, ratio, seed=derive_seed(self._mask_seed, name))

    def _unknown(self, name: str) -> str:
        name = str(name)[:MAX_NAME_CHARS]
        if not self._tools:
            return f"unknown tool '{name}'; there are no tools"
        return f"unknown tool '{name}'; {nearest(name, self._tools)}"


async def _run(tool: ToolSpec, toolset: Toolset, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """`(error_kind, text)` of one call, within the tool's time limit."""
    task = asyncio.create_task(_guarded(tool, toolset, arguments))
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


async def _guarded(tool: ToolSpec, toolset: Toolset, arguments: Mapping[str, Any]) -> tuple[str, str]:
    try:
        result = await toolset.call(tool.name, arguments)
        return ("raised" if result.is_error else ""), result.text
    except (Exception, SystemExit) as error:
        return "raised", reason(error)


def _storable(text: str) -> str:
    """`text` without characters that UTF-8 or a database column cannot hold: lone surrogates and NUL."""
    return cleaned(text).replace("\x00", "\ufffd")


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f" ... [cut: {len(text)} characters in all]"
    return text[: limit - len(mark)] + mark
