"""Named rewards from a course on agentic RL (its modules 3-2 and 3-3), with the components they are made of.

The course gives numbers, not exact rules; each docstring below says how we read it. Two rules hold for both. What does
not apply (no tool called, no reference) is None and adds nothing, where the course's code would pay or punish. And
nothing positive grows without bound with the number of actions: else the best policy is never to finish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.types import Step, Task, ToolCall
from midstream.rewards import graders
from midstream.rewards.builtin import is_search, repeats, step_parsed
from midstream.rewards.components import StepRewards, at_calls, component, needs_of

FREE_SEARCHES = 3
"""The "first few" searches, before more of them cost."""

PRESETS: Mapping[str, Mapping[str, float]] = {
    "seed002-3-2": {
        "correctness": 1.0,
        "search_success": 0.5,
        "excess_searches": -0.1,
        "failed_calls": -1.0,
        "correct_and_formatted": 2.0,
    },
    "seed002-3-3": {
        "signed_correctness": 1.0,
        "signed_format": 0.5,
        "signed_tool": 0.3,
        "signed_search": 0.2,
    },
}
"""Weights by component.

`seed002-3-2` (actions as the unit): correct reasoning +1, read as a right answer, well formed or not; each successful
search +0.5; each search too many -0.1; each failed tool call -1; a right answer that is also well formed +2 more. So a
right, well formed answer after one search earns 3.5.

`seed002-3-3` (dimensions as the unit): correctness ±1 times 1.0, format ±0.5 times 0.5, tool use ±0.5 times 0.3, search
+0.2 or -0.05 times 0.2. Correctness is terminal; the others sit on the steps they are about, and each is a mean over
its actions, so that the total stays within -1.41 and 1.44 however long the trajectory is.
"""


@component("search_success")
def search_success(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of searches that worked, on their steps. One too many earns nothing (see `excess_searches`)."""
    excess = _excess(tool_calls)
    values = [
        float(call.ok and not over) if is_search(call) else None for call, over in zip(tool_calls, excess, strict=True)
    ]
    return at_calls(steps, tool_calls, values) or 0.0


@component("excess_searches")
def excess_searches(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of searches beyond the first three, or that repeat an earlier one exactly, on their steps."""
    values = [
        float(over) if is_search(call) else None for call, over in zip(tool_calls, _excess(tool_calls), strict=True)
    ]
    return at_calls(steps, tool_calls, values) or 0.0


@component("failed_calls")
def failed_calls(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of tool calls that failed, on their steps; one that could not be read as a call failed too."""
    return at_calls(steps, tool_calls, [float(not call.ok) for call in tool_calls]) or 0.0


@component("correct_and_formatted")
def correct_and_formatted(answer: str | None, reference: Any, steps: Sequence[Step]) -> float | None:
    """1 when the answer is right and every step held to a format parsed, else 0. None when the task has no answer."""
    if reference is None:
        return None
    well_formed = all(step_parsed(step) is not False for step in steps)
    return float(answer is not None and well_formed and graders.answer_correct(answer, reference) == 1)


@component("signed_correctness")
def signed_correctness(answer: str | None, reference: Any) -> float | None:
    """+1 when the answer is right, else -1. None when the task has no answer."""
    if reference is None:
        return None
    return 1.0 if answer is not None and graders.answer_correct(answer, reference) == 1 else -1.0


@component("signed_format")
def signed_format(steps: Sequence[Step]) -> StepRewards:
    """Mean over the steps held to a format: +0.5 where the output parsed, -0.5 where not. None without such a step."""
    parsed = [step_parsed(step) for step in steps]
    return StepRewards(_mean_parts([None if ok is None else (0.5 if ok else -0.5) for ok in parsed]))


@component("signed_tool")
def signed_tool(task: Task, steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float | None:
    """Mean over the tool calls: +0.5 for a right one, -0.5 for a wrong one. None without a call.

    Right: it worked, did not repeat an earlier one, and is of a tool the task needs, where the task says which.
    """
    needs = needs_of(task)
    right = [
        call.ok and not repeat and (needs is None or call.tool in needs)
        for call, repeat in zip(tool_calls, repeats(tool_calls), strict=True)
    ]
    return at_calls(steps, tool_calls, _mean_parts([0.5 if ok else -0.5 for ok in right]))


@component("signed_search")
def signed_search(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float | None:
    """Mean over the searches: +0.2 for a useful one, -0.05 for another. None without a search.

    Useful: it worked and brought text that no earlier search had. Whether the text was put to use is not judged.
    """
    brought, values = set[str](), list[float | None]()
    for call in tool_calls:
        text = call.result.strip()
        useful = call.ok and text != "" and text not in brought
        values.append((0.2 if useful else -0.05) if is_search(call) else None)
        if is_search(call):
            brought.add(text)
    return at_calls(steps, tool_calls, _mean_parts(values))


def _excess(tool_calls: Sequence[ToolCall]) -> list[bool]:
    searches, result = 0, list[bool]()
    for call, repeat in zip(tool_calls, repeats(tool_calls), strict=True):
        searches += is_search(call)
        result.append(is_search(call) and (repeat or searches > FREE_SEARCHES))
    return result


def _mean_parts(values: Sequence[float | None]) -> list[float | None]:
    """Each value's part in the mean of those that apply."""
    count = sum(value is not None for value in values)
    return [None if value is None else value / count for value in values]
