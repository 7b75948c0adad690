"""The built-in reward components. Each counts or measures; whether that is good or bad is the weight's sign.

`needs` below is `task.metadata["needs"]`: the names of the tools a task takes, in order, where a task set knows them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import fsum
from typing import Any

from midstream.core.errors import UserError
from midstream.core.types import Step, Task, ToolCall, Trajectory
from midstream.rewards import graders
from midstream.rewards.answers import extract_answer
from midstream.rewards.choices import choice_of_reference
from midstream.rewards.components import StepRewards, at_calls, component, given_by_name, needs_of
from midstream.rewards.mathematics import math_verify


@component("correctness")
def correctness(answer: str | None, reference: Any) -> float | None:
    """1 when the answer is right (`graders.answer_correct`), else 0. None when the task has no answer."""
    return None if reference is None else _graded(graders.answer_correct, answer, reference)


@component("exact_match")
def exact_match(answer: str | None, reference: Any) -> float | None:
    """1 when the answer is the same text as the reference (SQuAD normalisation), else 0. None without a reference."""
    return None if reference is None else _graded(graders.exact_match, answer, reference)


@component("f1")
def f1(answer: str | None, reference: Any) -> float | None:
    """Token F1 of the answer and the reference, 0 to 1. None without a reference."""
    return None if reference is None else _graded(graders.f1, answer, reference)


@component("numeric")
def numeric(answer: str | None, reference: Any) -> float | None:
    """1 when the answer's number is the reference's, else 0. None when the reference is not a number."""
    accepted = reference if isinstance(reference, list | tuple) else (reference,)
    numbers = [one for one in accepted if graders.is_numeric(one)]
    return _graded(graders.numeric, answer, numbers) if numbers else None


@component("math")
def math(answer: str | None, reference: Any) -> float | None:
    """1 when the answer is mathematically equal to the reference (math-verify), else 0. None without a reference."""
    if reference is None:
        return None
    return 0.0 if answer is None else math_verify(answer, reference)


@component("choice")
def choice(answer: str | None, reference: Any) -> float | None:
    """1 when the answer chooses the reference's letter and no other, else 0. None when the reference is no letter."""
    accepted = reference if isinstance(reference, list | tuple) else (reference,)
    letters = [one for one in accepted if isinstance(one, str) and choice_of_reference(extract_answer(one))]
    return _graded(graders.multiple_choice, answer, letters) if letters else None


@component("bleu")
def bleu(answer: str | None, reference: Any) -> float | None:
    """Sentence BLEU of the answer and the reference, 0 to 1, by sacrebleu: up to 4-grams, effective order, exponential
    smoothing (Papineni et al. 2002; Chen and Cherry 2014, method 3). None without a reference.

    Several references count as BLEU counts them, together. Chinese is cut into characters, everything else as `13a`.
    """
    if reference is None:
        return None
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UserError("the component 'bleu' needs the package sacrebleu", "pip install sacrebleu") from None
    accepted = reference if isinstance(reference, list | tuple) else (reference,)
    wanted = [extract_answer(str(one)) for one in accepted]
    tokenizer = "zh" if any("\u4e00" <= character <= "\u9fff" for text in wanted for character in text) else "13a"
    metric = BLEU(effective_order=True, tokenize=tokenizer)
    return min(metric.sentence_score(extract_answer(answer or ""), wanted).score / 100, 1.0)


@component("given")
def given(trajectory: Trajectory) -> StepRewards | float | None:
    """The reward that the trajectory came with: from the owner who completed it or, to a trainer that reads a store,
    the one recorded there. What its steps had of it stays on them, the rest is the last one's. None without one. A
    component that came with it by name is `given.NAME`."""
    total = given_by_name(trajectory).get("given")
    own = [step.reward for step in trajectory.steps]
    if total is None or all(part is None for part in own):
        return total
    before = [part or 0.0 for part in own[:-1]]
    return StepRewards([*before, total - fsum(before)])


@component("format")
def format_(steps: Sequence[Step]) -> float | None:
    """Share of the steps held to a format whose output parsed, 0 to 1. None when no step was sampled.

    A step is held to a format when its metadata says how it went: `parsed` true, or `parse_error` with the reason. A
    trajectory in which no step says so counts as well formed.
    """
    marked = [ok for ok in map(step_parsed, steps) if ok is not None]
    if marked:
        return sum(marked) / len(marked)
    return 1.0 if steps else None


@component("tool_success")
def tool_success(tool_calls: Sequence[ToolCall]) -> float | None:
    """Share of tool calls that worked, 0 to 1. None when there was none."""
    return sum(call.ok for call in tool_calls) / len(tool_calls) if tool_calls else None


@component("tool_cost")
def tool_cost(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of tool calls, on the steps that asked for them. What could not be read as a call is not one."""
    return at_calls(steps, tool_calls, [1.0 if was_made(call) else None for call in tool_calls]) or 0.0


@component("wasted_calls")
def wasted_calls(task: Task, steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float | None:
    """Number of tool calls that repeat an earlier one exactly, or exceed the number the task needs, on their steps.

    A call counts once. None when the task does not say what it needs.
    """
    needs = needs_of(task)
    if needs is None:
        return None
    different, values = 0, list[float | None]()
    for call, repeat in zip(tool_calls, repeats(tool_calls), strict=True):
        different += was_made(call) and not repeat
        values.append(float(repeat or different > len(needs)) if was_made(call) else None)
    return at_calls(steps, tool_calls, values) or 0.0


@component("right_tool")
def right_tool(task: Task, tool_calls: Sequence[ToolCall]) -> float | None:
    """Share of the needed tools called with success in the needed order (longest common subsequence), 0 to 1.

    None when the task needs none or does not say.
    """
    needs = needs_of(task)
    if not needs:
        return None
    longest = [0] * (len(needs) + 1)  # of the calls so far and the first n needs
    for call in tool_calls:
        if call.ok:
            before = longest.copy()
            for n, tool in enumerate(needs, 1):
                longest[n] = before[n - 1] + 1 if tool == call.tool else max(before[n], longest[n - 1])
    return longest[-1] / len(needs)


@component("turns")
def turns(trajectory: Trajectory) -> float:
    """Number of turns the flow took."""
    return float(trajectory.turns)


@component("length")
def length(steps: Sequence[Step]) -> StepRewards | None:
    """Number of sampled tokens, on their steps: of trainable steps, or of all when none is. None without steps."""
    counted = [step.trainable for step in steps]
    if not any(counted):
        counted = [True] * len(steps)
    values = [float(len(step.response_ids)) if count else None for step, count in zip(steps, counted, strict=True)]
    return StepRewards(values) if steps else None


def step_parsed(step: Step) -> bool | None:
    """Whether the output of `step` parsed; None when it was not held to a format."""
    if "parse_error" not in step.metadata and "parsed" not in step.metadata:
        return None
    return not step.metadata.get("parse_error") and bool(step.metadata.get("parsed", True))


def was_made(call: ToolCall) -> bool:
    """False for what a planner wrote that could not be read as a call."""
    return call.error_kind != "unparsed"


def is_search(call: ToolCall) -> bool:
    """A call, readable as such, of a tool whose name says that it searches or retrieves."""
    name = call.tool.lower()
    return was_made(call) and ("search" in name or "retriev" in name)


def repeats(tool_calls: Sequence[ToolCall]) -> list[bool]:
    """For each call, whether an earlier one had the same tool and arguments."""
    seen, result = set[str](), list[bool]()
    for call in tool_calls:
        key = json.dumps([call.tool, call.arguments], sort_keys=True, default=repr)
        result.append(was_made(call) and key in seen)
        seen.add(key)
    return result


def _graded(grade: Any, answer: str | None, reference: Any) -> float:
    return 0.0 if answer is None else grade(answer, reference)
