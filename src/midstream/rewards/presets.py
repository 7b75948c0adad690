"""Reward presets from a course on agentic RL (its modules 3-2 and 3-3), and their components.

The course gives numbers but no exact rules; each docstring below states our interpretation. Two rules hold for both
presets. A component that does not apply (no tool call, no reference) is None and adds nothing, where the course's code
would reward or penalize. And no positive component grows without bound with the number of actions, because the best
policy would then never finish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.types import Step, Task, ToolCall
from midstream.rewards import graders
from midstream.rewards.builtin import is_search, repeats, step_parsed
from midstream.rewards.components import StepRewards, at_calls, component, needs_of
from midstream.rewards.workflows import WORKFLOW_PRESETS

FREE_SEARCHES = 3
"""Number of searches without a penalty: the course's "first few"."""

PRESETS: Mapping[str, Mapping[str, float]] = {
    **WORKFLOW_PRESETS,
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
"""Weights by component; those of workflows are explained in `workflows.py`.

`seed002-3-2` (per action): a correct answer +1, well formed or not; each successful search +0.5; each excess search
-0.1; each failed tool call -1; a correct and well-formed answer +2 more. A correct, well-formed answer after one search
therefore earns 3.5.

`seed002-3-3` (per dimension): correctness ±1 times 1.0, format ±0.5 times 0.5, tool use ±0.5 times 0.3, search +0.2 or
-0.05 times 0.2. Correctness is terminal; the others are on their steps, and each is a mean over its actions, so that
the total stays between -1.41 and 1.44 for any length of the trajectory.
"""


@component("search_success")
def search_success(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of successful searches, on their steps. Excess searches earn nothing (see `excess_searches`)."""
    excess = _excess(tool_calls)
    values = [
        float(call.ok and not over) if is_search(call) else None for call, over in zip(tool_calls, excess, strict=True)
    ]
    return at_calls(steps, tool_calls, values) or 0.0


@component("excess_searches")
def excess_searches(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of searches after the first three, or that exactly repeat an earlier one, on their steps."""
    values = [
        float(over) if is_search(call) else None for call, over in zip(tool_calls, _excess(tool_calls), strict=True)
    ]
    return at_calls(steps, tool_calls, values) or 0.0


@component("failed_calls")
def failed_calls(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of failed tool calls, on their steps, including output that could not be parsed as a call."""
    return at_calls(steps, tool_calls, [float(not call.ok) for call in tool_calls]) or 0.0


@component("correct_and_formatted")
def correct_and_formatted(answer: str | None, reference: Any, steps: Sequence[Step]) -> float | None:
    """1 when the answer is correct and every step with a required format parsed, else 0. None when the task has no
    answer."""
    if reference is None:
        return None
    well_formed = all(step_parsed(step) is not False for step in steps)
    return float(answer is not None and well_formed and graders.answer_correct(answer, reference) == 1)


@component("signed_correctness")
def signed_correctness(answer: str | None, reference: Any) -> float | None:
    """+1 when the answer is correct, else -1. None when the task has no answer."""
    if reference is None:
        return None
    return 1.0 if answer is not None and graders.answer_correct(answer, reference) == 1 else -1.0


@component("signed_format")
def signed_format(steps: Sequence[Step]) -> StepRewards:
    """Mean over steps with a required format: +0.5 when the output parsed, -0.5 otherwise. None without such a step."""
    parsed = [step_parsed(step) for step in steps]
    return StepRewards(_mean_parts([None if ok is None else (0.5 if ok else -0.5) for ok in parsed]))


@component("signed_tool")
def signed_tool(task: Task, steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float | None:
    """Mean over tool calls: +0.5 for a correct one, -0.5 for a wrong one. None without a call.

    A call is correct when it succeeded, did not repeat an earlier one, and used a tool that the task needs, if the task
    lists them.
    """
    needs = needs_of(task)
    right = [
        call.ok and not repeat and (needs is None or call.tool in needs)
        for call, repeat in zip(tool_calls, repeats(tool_calls), strict=True)
    ]
    return at_calls(steps, tool_calls, _mean_parts([0.5 if ok else -0.5 for ok in right]))


@component("signed_search")
def signed_search(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float | None:
    """Mean over searches: +0.2 for a useful one, -0.05 otherwise. None without a search.

    A search is useful when it succeeded and returned text that no earlier search returned, whether or not the text was
    used.
    """
    returned, values = set[str](), list[float | None]()
    for call in tool_calls:
        text = call.result.strip()
        useful = call.ok and text != "" and text not in returned
        values.append((0.2 if useful else -0.05) if is_search(call) else None)
        if is_search(call):
            returned.add(text)
    return at_calls(steps, tool_calls, _mean_parts(values))


def _excess(tool_calls: Sequence[ToolCall]) -> list[bool]:
    searches, result = 0, list[bool]()
    for call, repeat in zip(tool_calls, repeats(tool_calls), strict=True):
        searches += is_search(call)
        result.append(is_search(call) and (repeat or searches > FREE_SEARCHES))
    return result


def _mean_parts(values: Sequence[float | None]) -> list[float | None]:
    """Return each value's part of the mean of the values that apply."""
    count = sum(value is not None for value in values)
    return [None if value is None else value / count for value in values]
