"""Built-in reward components. Each counts or measures; the sign of its weight says whether that is good.

`needs` below is `task.metadata["needs"]`: the names of the tools a task requires, in order, when a task set provides
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    """1 when the answer is correct (`graders.answer_correct`), else 0. None when the task has no answer."""
    return None if reference is None else _graded(graders.answer_correct, answer, reference)


@component("exact_match")
def exact_match(answer: str | None, reference: Any) -> float | None:
    """1 when the answer equals the reference (SQuAD normalization), else 0. None without a reference."""
    return None if reference is None else _graded(graders.exact_match, answer, reference)


@component("f1")
def f1(answer: str | None, reference: Any) -> float | None:
    """Token F1 of the answer and the reference, 0 to 1. None without a reference."""
    return None if reference is None else _graded(graders.f1, answer, reference)


@component("numeric")
def numeric(answer: str | None, reference: Any) -> float | None:
    """1 when the answer's number equals the reference's, else 0. None when the reference is not a number."""
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
    """1 when the answer chooses only the reference's letter, else 0. None when the reference is not a letter."""
    accepted = reference if isinstance(reference, list | tuple) else (reference,)
    letters = [one for one in accepted if isinstance(one, str) and choice_of_reference(extract_answer(one))]
    return _graded(graders.multiple_choice, answer, letters) if letters else None


@component("bleu")
def bleu(answer: str | None, reference: Any) -> float | None:
    """Sentence BLEU of the answer and the reference, 0 to 1, by sacrebleu: up to 4-grams, effective order, exponential
    smoothing (Papineni et al. 2002; Chen and Cherry 2014, method 3). None without a reference.

    Several references are scored together, as BLEU defines it. Chinese is tokenized by character, everything else by
    `13a`.
    """
    if reference is None:
        return None
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UserError("the component 'bleu' needs the package sacrebleu", "pip install sacrebleu") from None
    accepted = reference if isinstance(reference, list | tuple) else (reference,)
    references = [extract_answer(str(one)) for one in accepted]
    tokenizer = "zh" if any("\u4e00" <= character <= "\u9fff" for text in references for character in text) else "13a"
    metric = BLEU(effective_order=True, tokenize=tokenizer)
    return min(metric.sentence_score(extract_answer(answer or ""), references).score / 100, 1.0)


@component("environment")
def environment(trajectory: Trajectory) -> StepRewards | float | None:
    """Sum of the environment's rewards over the episode; by step if each action was one model call. None without
    rewards."""
    played = trajectory.metadata.get("environment")
    rewards = played.get("rewards") if isinstance(played, Mapping) else None
    if not isinstance(rewards, list | tuple) or all(value is None for value in rewards):
        return None
    if len(rewards) == len(trajectory.steps):
        return StepRewards(rewards)
    return fsum(value for value in rewards if value is not None)


@component("schedule")
def schedule(task: Task, trajectory: Trajectory) -> float | None:
    """How good a schedule is: 1 at the least cost that choices can lead to, 0 at the greatest, linear between. None for
    other tasks, and without a complete schedule."""
    bounds, made = task.metadata.get("schedule"), trajectory.metadata.get("schedule")
    if not isinstance(bounds, Mapping) or not isinstance(made, Mapping) or made.get("cost") is None:
        return None
    return (bounds["worst"] - made["cost"]) / (bounds["worst"] - bounds["best"])


@component("given")
def given(trajectory: Trajectory) -> StepRewards | float | None:
    """The reward recorded with the trajectory: by its owner on completion, or in the store. None without one.

    Step rewards stay on their steps and the last step gets the remainder. `given.NAME` is a recorded component.
    """
    total = given_by_name(trajectory).get("given")
    own = [step.reward for step in trajectory.steps]
    if total is None or all(part is None for part in own):
        return total
    before = [part or 0.0 for part in own[:-1]]
    return StepRewards([*before, total - fsum(before)])


@component("format")
def format_(steps: Sequence[Step]) -> float | None:
    """Share of steps with a required format whose output parsed, 0 to 1. None without steps.

    A step has a required format when its metadata has `parsed`, or `parse_error` with the reason. A trajectory without
    such steps counts as well formed.
    """
    marked = [ok for ok in map(step_parsed, steps) if ok is not None]
    if marked:
        return sum(marked) / len(marked)
    return 1.0 if steps else None


@component("tool_success")
def tool_success(tool_calls: Sequence[ToolCall]) -> float | None:
    """Share of successful tool calls, 0 to 1. None without calls."""
    return sum(call.ok for call in tool_calls) / len(tool_calls) if tool_calls else None


@component("tool_cost")
def tool_cost(steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float:
    """Number of tool calls, on the steps that made them. Output that could not be parsed as a call is not counted."""
    return at_calls(steps, tool_calls, [1.0 if was_made(call) else None for call in tool_calls]) or 0.0


@component("wasted_calls")
def wasted_calls(task: Task, steps: Sequence[Step], tool_calls: Sequence[ToolCall]) -> StepRewards | float | None:
    """Number of tool calls that exactly repeat an earlier one or exceed the number the task needs, on their steps.

    Each call counts at most once. None when the task does not list its tools.
    """
    needs = needs_of(task)
    if needs is None:
        return None
    distinct, values = 0, list[float | None]()
    for call, repeat in zip(tool_calls, repeats(tool_calls), strict=True):
        distinct += was_made(call) and not repeat
        values.append(float(repeat or distinct > len(needs)) if was_made(call) else None)
    return at_calls(steps, tool_calls, values) or 0.0


@component("right_tool")
def right_tool(task: Task, tool_calls: Sequence[ToolCall]) -> float | None:
    """Share of the needed tools called successfully in the needed order (longest common subsequence), 0 to 1.

    None when the task needs no tools or does not list them.
    """
    needs = needs_of(task)
    if not needs:
        return None
    longest = [0] * (len(needs) + 1)  # longest common subsequence with the first n needs
    for call in tool_calls:
        if call.ok:
            before = longest.copy()
            for n, tool in enumerate(needs, 1):
                longest[n] = before[n - 1] + 1 if tool == call.tool else max(before[n], longest[n - 1])
    return longest[-1] / len(needs)


@component("turns")
def turns(trajectory: Trajectory) -> float:
    """Number of turns of the flow."""
    return float(trajectory.turns)


@component("length")
def length(steps: Sequence[Step]) -> StepRewards | None:
    """Number of sampled tokens, on their steps: of trainable steps, or of all steps when none is trainable. None
    without steps."""
    counted = [step.trainable for step in steps]
    if not any(counted):
        counted = [True] * len(steps)
    values = [float(len(step.response_ids)) if count else None for step, count in zip(steps, counted, strict=True)]
    return StepRewards(values) if steps else None


def step_parsed(step: Step) -> bool | None:
    """Return whether the output of `step` parsed; None when it had no required format."""
    if "parse_error" not in step.metadata and "parsed" not in step.metadata:
        return None
    return not step.metadata.get("parse_error") and bool(step.metadata.get("parsed", True))


def was_made(call: ToolCall) -> bool:
    """Return False for planner output that could not be parsed as a call."""
    return call.error_kind != "unparsed"


def is_search(call: ToolCall) -> bool:
    """Return whether `call` was parsed and its tool's name contains "search" or "retriev"."""
    name = call.tool.lower()
    return was_made(call) and ("search" in name or "retriev" in name)


def repeats(tool_calls: Sequence[ToolCall]) -> list[bool]:
    """Return for each call whether an earlier one had the same tool and arguments."""
    seen, result = set[str](), list[bool]()
    for call in tool_calls:
        key = json.dumps([call.tool, call.arguments], sort_keys=True, default=repr)
        result.append(was_made(call) and key in seen)
        seen.add(key)
    return result


def _graded(grade: Any, answer: str | None, reference: Any) -> float:
    return 0.0 if answer is None else grade(answer, reference)
