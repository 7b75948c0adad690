"""Hints of a request, such as reasoning effort and verbosity: kept with the step, and passed to the chat template under
the variable names that templates use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from pydantic import BaseModel

from midstream.gateway.dialects.arguments import hints_of

NO_EFFORT = ("none", "minimal")
"""Efforts that switch thinking off."""


def step_metadata(request: BaseModel, **kept: Any) -> dict[str, Any]:
    """Return the metadata of a step: the nonempty values of `kept`, and the request's hints."""
    found = {name: value for name, value in kept.items() if value}
    if hints := hints_of(request):
        found["hints"] = hints
    return found


def template_arguments(metadata: Mapping[str, Any], reads: Collection[str]) -> dict[str, Any]:
    """Return the hints in `metadata` as arguments of a chat template that reads the variables `reads`."""
    hints = metadata.get("hints")
    if not hints or not reads:
        return {}
    found: dict[str, Any] = {}
    effort = _in(hints, "reasoning", "effort") or hints.get("reasoning_effort") or hints.get("output_config.effort")
    thinking = _in(hints, "thinking", "type")
    if isinstance(effort, str):
        found["reasoning_effort"] = effort
    if thinking in ("enabled", "adaptive") or isinstance(effort, str):
        # Qwen's and DeepSeek's names.
        found["enable_thinking"] = found["thinking"] = thinking is not None or effort not in NO_EFFORT
    if isinstance(budget := _in(hints, "thinking", "budget_tokens"), int):
        found["thinking_budget"] = budget
    if isinstance(verbosity := hints.get("verbosity") or hints.get("text.verbosity"), str):
        found["verbosity"] = verbosity
    return {name: value for name, value in found.items() if name in reads}


def _in(hints: Mapping[str, Any], name: str, inner: str) -> Any:
    value = hints.get(name)
    return cast("dict[str, Any]", value).get(inner) if isinstance(value, dict) else None
