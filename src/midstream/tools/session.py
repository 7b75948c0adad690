"""`ToolSession`: the tools of one trajectory.

A session validates each call, runs it through the trajectory's policies, and converts the outcome to a `ToolCall` that
the model can read. A failing tool does not raise; failing infrastructure raises `ToolOutage`, unless the config reports
it to the agent. A session cannot stop a synchronous tool that never returns, which keeps its (daemon) thread, or an
async tool that blocks the event loop.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from midstream.core.errors import nearest
from midstream.core.seeds import derive_seed
from midstream.core.text import cleaned
from midstream.core.toolsets import ToolResult, Toolset, ToolSpec
from midstream.core.types import ToolCall, ToolSchema
from midstream.tools.arguments import validate_arguments
from midstream.tools.combine import CombinedToolset
from midstream.tools.errors import INVALID, UNAVAILABLE, UNKNOWN_TOOL, ToolOutage
from midstream.tools.mask import mask_retrieved_tokens
from midstream.tools.policies import adapted
from midstream.tools.toolbox import Toolbox
from midstream.tools.toolset import FunctionToolset

MAX_NAME_CHARS = 64
"""Maximum characters of a tool's name; a longer name written by a model is recorded truncated."""

_log = logging.getLogger(__name__)
_warned: set[str] = set()


class ToolSession:
    """The tools of the toolbox and of all added toolsets. Only calls that run count against the budget; refused calls
    are free."""

    def __init__(self, toolbox: Toolbox, mask_seed: int | None = None) -> None:
        self.toolbox = toolbox
        self._mask_seed = mask_seed
        self._all = CombinedToolset()
        self._all.add(FunctionToolset(toolbox.tools), [toolbox.configured(tool) for tool in toolbox.tools])
        self._chain, self._budget = toolbox.chain(self._all)
        self._listed = False
        self._invalid: Counter[str] = Counter()

    async def open(self, resources: AsyncExitStack) -> None:
        """Open the toolbox's toolsets and add their tools; `resources` closes them."""
        for factory in self.toolbox.toolsets:
            toolset = factory.make()
            await toolset.open()
            resources.push_async_callback(toolset.close)
            await self.add(toolset)

    @property
    def tools(self) -> list[ToolSpec]:
        """All tools, in the order they were added."""
        return list(self._all.specs.values())

    def get(self, name: str) -> ToolSpec | None:
        """Return the tool with this name, or None. `name` may be anything a model wrote."""
        return self._all.specs.get(name) if isinstance(name, str) else None

    def rebuilds(self, name: str) -> bool:
        """Whether the tool has state that an interrupted attempt must rebuild, by making the recorded calls again."""
        return self._all.rebuilds(name)

    def shown(self, question: str | None = None) -> list[ToolSpec]:
        """Return the tools that a prompt about `question` shows; all without a question."""
        return self.toolbox.shown(self.tools, question)

    def cards(self, question: str | None = None) -> str:
        """Return the cards of `shown`, for a prompt."""
        return "\n".join(map(self.toolbox.card_of, self.shown(question)))

    def schemas(self, question: str | None = None) -> tuple[ToolSchema, ...]:
        """Return the declarations of `shown`, for native tool calls."""
        return tuple(tool.schema for tool in self.shown(question))

    async def add(self, toolset: Toolset) -> None:
        """Add the tools of an open `toolset`, under the budget and limits of this session.

        Raises `ConfigError` for a name that is taken or cannot be a tool's, and for an invalid schema."""
        from midstream.tools.json_schema import check_schema

        specs = await toolset.list()
        for spec in specs:
            check_schema(spec)
        self._all.add(toolset, [self.toolbox.configured(spec) for spec in specs])
        self._listed = False

    def status(self, name: str) -> str:
        """Return the state of a tool for a prompt: availability, latency, return type."""
        seen, spec = self.toolbox.statistics.get(name), self.get(name)
        breaker = self.toolbox.breakers.get(name)
        parts = ["paused" if breaker is not None and breaker.open else "available"]
        if seen is not None and seen.availability is not None and seen.latency_s is not None:
            parts = parts if breaker is not None and breaker.open else [f"{seen.availability:.0%} available"]
            parts += [f"{seen.success or 0:.0%} success", f"{seen.latency_s:.2g} s"]
        return ", ".join([*parts, f"returns {spec.returns}" if spec is not None and spec.returns else ""]).rstrip(", ")

    @property
    def remaining(self) -> int | None:
        """Number of remaining calls; None without a limit."""
        return self._budget.remaining

    def validate(self, name: str, arguments: Any) -> list[str]:
        """Return the problems of a call, worded for a model; empty for a valid call."""
        tool = self.get(name)
        if tool is None:
            return [self._unknown(name)]
        return validate_arguments(tool, arguments).problems

    def arguments_of(self, name: str, arguments: Any) -> Mapping[str, Any]:
        """Return `arguments` of a call as its record holds them: numbers written as text are numbers."""
        tool = self.get(name)
        checked = None if tool is None else validate_arguments(tool, arguments)
        if checked is not None and not checked.problems:
            return checked.raw
        return arguments if isinstance(arguments, Mapping) else {}

    async def call(self, name: str, arguments: Any, step_index: int | None = None) -> ToolCall:
        """Run a tool. A failure is a `ToolCall` with `ok` False, an `error_kind`, and the reason as its result. Raises
        `ToolOutage` if infrastructure failed."""
        call, _ = await self.run(name, arguments, step_index)
        return call

    async def restore(self, call: ToolCall) -> None:
        """Count a recorded `call` that an interrupted trajectory made: it has used the budget of this session."""
        await self._list()
        tool, arguments = self.get(call.tool), call.arguments
        if tool is None and call.error_kind != UNKNOWN_TOOL:  # it went to the default tool
            tool = self.get(self.toolbox.use.default_tool or "")
            arguments = arguments if tool is None else adapted(arguments, tool) or arguments
        if tool is None:
            return
        if call.error_kind == INVALID:
            self._count_invalid(tool.name)
            return
        self._invalid[tool.name] = 0
        answered_by = "" if call.answered_by == tool.name else call.answered_by
        self._chain.restore(replace(call, tool=tool.name, arguments=arguments, answered_by=answered_by))

    async def run(self, name: str, arguments: Any, step_index: int | None = None) -> tuple[ToolCall, ToolResult]:
        """Run a tool like `call`, and return also the result with its images, files and sources."""
        started = time.perf_counter()
        await self._list()
        target, raw, result = await self._result(name, arguments)
        whole = _storable(f"Error: {result.text}" if result.is_error else result.text)
        shown = whole if result.is_error else self._masked(result.answered_by or target, whole)
        limit = self.toolbox.max_result_chars
        call = ToolCall(
            tool=_storable(str(name)[:MAX_NAME_CHARS]),
            arguments=dict(raw),
            ok=not result.is_error,
            result=_shorten(shown, limit),
            error_kind=result.error_kind,
            latency_s=time.perf_counter() - started,
            step_index=step_index,
            unmasked="" if shown == whole else _shorten(whole, limit),
            answered_by=result.answered_by or (target if target != name and not result.is_error else ""),
            attempts=result.attempts,
        )
        if call.error_kind == UNAVAILABLE and self.toolbox.use.outage == "fail":
            raise ToolOutage(call)
        return call, result

    async def _result(self, name: Any, arguments: Any) -> tuple[str, Mapping[str, Any], ToolResult]:
        """Return the called tool, the arguments it received, and its result."""
        given = arguments if isinstance(arguments, Mapping) else {}
        tool = self.get(name)
        if tool is None:
            default = self.get(self.toolbox.use.default_tool or "")
            instead = None if default is None else adapted(given, default)
            if default is None or instead is None:
                return str(name), given, ToolResult.failure(UNKNOWN_TOOL, self._unknown(name))
            return default.name, given, await self._chain.call(default.name, instead)
        checked = validate_arguments(tool, arguments)
        if checked.problems:
            return tool.name, given, self._invalid_call(tool, checked.problems)
        self._invalid[tool.name] = 0
        return tool.name, checked.raw, await self._chain.call(tool.name, checked.raw)

    def _invalid_call(self, tool: ToolSpec, problems: list[str]) -> ToolResult:
        reason = f"{'; '.join(problems)}. Use {tool.signature}"
        if self._count_invalid(tool.name):
            reason = f"wrong {self._invalid[tool.name]} times in a row, so this call counts: {reason}"
        return ToolResult.failure(INVALID, reason)

    def _count_invalid(self, name: str) -> bool:
        """Count a call with invalid arguments; returns whether it uses the budget."""
        self._invalid[name] += 1
        if self._invalid[name] <= self.toolbox.use.max_invalid:
            return False
        self._budget.charge(name)
        return True

    async def _list(self) -> None:
        """Tell the wrappers about the tools added since the last call."""
        if self._listed:
            return
        await self._chain.list()
        self._listed = True
        for name in self.toolbox.unknown_names(self._all.specs):
            if name not in _warned:
                _warned.add(name)
                _log.warning("the settings of tool use name the tool '%s', which is not there", name)

    def _masked(self, name: str, result: str) -> str:
        ratio = self.toolbox.mask.get(name, 0.0)
        if self._mask_seed is None or not ratio:
            return result
        return mask_retrieved_tokens(result, ratio, seed=derive_seed(self._mask_seed, name))

    def _unknown(self, name: Any) -> str:
        name = str(name)[:MAX_NAME_CHARS]
        if not self._all.specs:
            return f"unknown tool '{name}'; there are no tools"
        return f"unknown tool '{name}'; {nearest(name, self._all.specs)}"


def _storable(text: str) -> str:
    """Return `text` without characters that UTF-8 or a database column cannot represent: lone surrogates and NUL."""
    return cleaned(text).replace("\x00", "\ufffd")


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f" ... [cut: {len(text)} characters in all]"
    return text[: limit - len(mark)] + mark
