"""`FallbackToolset`: when a tool fails, tries the tools of its fallback chain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from midstream.core.toolsets import ToolResult, ToolSpec
from midstream.core.types import ToolCall
from midstream.tools.arguments import validate_arguments
from midstream.tools.errors import OVER_BUDGET, REFUSED
from midstream.tools.policies.wrapper import ToolsetWrapper


class FallbackToolset(ToolsetWrapper):
    """Returns the first success of the tool and its fallbacks, else the tool's own failure.

    A refused call or one over budget does not fall back. A fallback that is missing or cannot take the arguments is
    skipped."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        result = await self.inner.call(name, arguments)
        attempts = result.attempts
        if not result.is_error or result.error_kind in (OVER_BUDGET, REFUSED):
            return result
        for other, given in self._fallbacks(name, arguments):
            instead = await self.inner.call(other, given)
            attempts += instead.attempts
            if not instead.is_error:
                return replace(instead, answered_by=other, attempts=attempts)
        return replace(result, attempts=attempts)

    def restore(self, call: ToolCall) -> None:
        """Count also the fallbacks that were called. Of the attempts each has one; the others were the tool's own."""
        tried: list[ToolCall] = []
        if not call.ok or call.answered_by:
            for other, given in self._fallbacks(call.tool, call.arguments):
                if len(tried) + 1 == call.attempts:
                    break
                tried.append(replace(call, tool=other, arguments=given, attempts=1, latency_s=0.0))
                if other == call.answered_by:
                    break
        for one in (replace(call, attempts=call.attempts - len(tried)), *tried):
            super().restore(one)

    def _fallbacks(self, name: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The fallbacks of a tool that can take its `arguments`, and what they get."""
        for other in self.specs[name].policy.fallback:
            given = adapted(arguments, self.specs[other]) if other in self.specs else None
            if given is not None:
                yield other, given


def adapted(arguments: Mapping[str, Any], target: ToolSpec) -> Mapping[str, Any] | None:
    """Adapt the `arguments` of one tool to `target`: unchanged if they are valid there, else a single value, or all
    arguments as JSON, as the only required parameter of `target`. None if neither is possible."""
    checked = validate_arguments(target, arguments)
    if not checked.problems:
        return checked.raw
    required = list(target.parameters.get("required", ()))
    if len(required) != 1:
        return None
    values = list(arguments.values())
    whole = json.dumps(dict(arguments), ensure_ascii=False, default=str)
    for value in [values[0], whole] if len(values) == 1 else [whole]:
        checked = validate_arguments(target, {required[0]: value})
        if not checked.problems:
            return checked.raw
    return None
