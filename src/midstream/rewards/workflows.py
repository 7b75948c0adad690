"""Rewards of a policy that writes workflows. They read the record of the run, `trajectory.metadata["workflow"]`:
`valid` (whether the checker accepts the text), `form` (`hybrid` or `code`), `status`, `fallback`, `answer`,
`model_calls`, `cost_usd`, `latency_s`, `operators` and `prompt_text` (its prompts, joined).

An answer counts only if the workflow itself gave it: an invalid text, a failed run or a fallback earns nothing.

There are two families. In `workflow_*` everything depends on correctness. `seed003_*` are the five dimensions of seed
003, each from -10 to 10, with exact graders instead of its string containment and its partial credit for near numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midstream.core.types import Task, Trajectory
from midstream.rewards import graders
from midstream.rewards.answers import after_thinking
from midstream.rewards.components import component
from midstream.rewards.mathematics import math_verify
from midstream.rewards.programs import hidden_tests, passed_tests, share

WORKFLOW_PRESETS: Mapping[str, Mapping[str, float]] = {
    "workflow": {"workflow_solved": 1.0, "workflow_expense": -0.1, "workflow_invalid": -0.2},
    "seed003-5": {
        "seed003_correctness": 0.65,
        "seed003_efficiency": 0.15,
        "seed003_simplicity": 0.10,
        "seed003_format": 0.05,
        "seed003_repetition": 0.05,
    },
    "seed003-3": {"seed003_correctness": 0.70, "seed003_efficiency": 0.20, "seed003_simplicity": 0.10},
}
"""Weights by component.

`workflow`: a correct answer earns 1, minus up to 0.1 for calls beyond the first; a wrong one 0; an invalid workflow
-0.2. So no saving compensates for a wrong answer, and an easy problem is best solved with one call.

`seed003-5` and `seed003-3`: seed 003's five dimensions, and the three of its project tree; from -10 to 9.5 and from -10
to 10. A failed run is -10 in every dimension. The maximum of five dimensions is 9.5: the last is only a penalty.
"""

WORST, BEST = -10.0, 10.0
COST_BANDS = ((0.001, 10.0), (0.005, 5.0), (0.01, 0.0), (0.05, -3.0))
"""Efficiency by cost: upper limit in US dollars, and value; -8 above the last limit."""
TIME_BANDS = ((5.0, 10.0), (15.0, 5.0), (30.0, 0.0), (60.0, -2.0))
"""Simplicity by time: upper limit in seconds, and value; -5 above the last limit."""
OPERATOR_BANDS = ((2.0, 10.0), (4.0, 5.0), (6.0, 0.0))
"""Simplicity by operator calls: upper limit, and value; -5 above the last limit."""


def record_of(trajectory: Trajectory) -> Mapping[str, Any]:
    """Return the record of the workflow's run; empty without one."""
    found = trajectory.metadata.get("workflow")
    return found if isinstance(found, Mapping) else {}


def own_answer(trajectory: Trajectory) -> str | None:
    """Return the answer of the workflow itself; None after a failure or a fallback."""
    record = record_of(trajectory)
    if not record.get("valid") or record.get("status") != "completed" or record.get("fallback"):
        return None
    answer = record.get("answer")
    return answer if isinstance(answer, str) else None


async def graded(answer: str, task: Task) -> float | None:
    """Return the grade of an answer, 0 to 1, by the kind of problem: code by the share of hidden tests that pass, maths
    by equality (math-verify), multiple choice by the letter, QA by token F1, others by `graders.answer_correct`. None
    if the task has no reference."""
    reference = task.answer
    if reference is None:
        return None
    if hidden_tests(reference)[0]:
        return share(await passed_tests(answer, reference))
    kind = str(task.metadata.get("problem_type") or task.kind)
    if isinstance(reference, Mapping):
        return graders.answer_correct(answer, reference)
    if kind == "math":
        return math_verify(answer, reference)
    if kind == "qa":
        return max(graders.f1(answer, reference), graders.answer_correct(answer, reference))
    if kind == "choice":
        return graders.multiple_choice(answer, reference)
    return graders.answer_correct(answer, reference)


@component("workflow_solved")
async def workflow_solved(trajectory: Trajectory, task: Task) -> float | None:
    """Grade of the workflow's own answer, 0 to 1 (`graded`); for code 1 if every hidden test passes, else 0. 0 for an
    invalid or failed workflow, None if the task has no reference."""
    if task.answer is None:
        return None
    answer = own_answer(trajectory)
    grade = 0.0 if answer is None else await graded(answer, task) or 0.0
    return float(grade == 1) if hidden_tests(task.answer)[0] else grade


@component("workflow_expense")
async def workflow_expense(trajectory: Trajectory, task: Task) -> float | None:
    """1 - 1 / model calls for a correct answer: 0 for one call, approaching 1 for many. 0 for any other answer."""
    if task.answer is None:
        return None
    answer = own_answer(trajectory)
    if answer is None or await graded(answer, task) != 1:
        return 0.0
    return 1 - 1 / max(1, int(record_of(trajectory).get("model_calls") or 1))


@component("workflow_invalid")
def workflow_invalid(trajectory: Trajectory) -> float:
    """1 if the checker refuses the text as a workflow, else 0."""
    return float(not record_of(trajectory).get("valid"))


@component("seed003_correctness")
async def seed003_correctness(trajectory: Trajectory, task: Task) -> float | None:
    """20 x grade - 10: from -10 (wrong, or no answer of the workflow itself) to 10 (correct)."""
    if task.answer is None:
        return None
    answer = own_answer(trajectory)
    return WORST if answer is None else WORST + (BEST - WORST) * (await graded(answer, task) or 0.0)


@component("seed003_efficiency")
def seed003_efficiency(trajectory: Trajectory) -> float | None:
    """Value of the run's cost in `COST_BANDS`. None if the cost is unknown, which is not 0."""
    if own_answer(trajectory) is None:
        return WORST
    cost = record_of(trajectory).get("cost_usd")
    return None if cost is None else _banded(cost, COST_BANDS, -8.0)


@component("seed003_simplicity")
def seed003_simplicity(trajectory: Trajectory) -> float:
    """Mean of the values in `TIME_BANDS` for the run's seconds and in `OPERATOR_BANDS` for its operator calls."""
    if own_answer(trajectory) is None:
        return WORST
    record = record_of(trajectory)
    seconds = _banded(float(record.get("latency_s") or 0), TIME_BANDS, -5.0)
    return (seconds + _banded(len(record.get("operators") or ()), OPERATOR_BANDS, -5.0)) / 2


@component("seed003_format")
def seed003_format(trajectory: Trajectory) -> float:
    """10 for a valid workflow in the hybrid form, 0 for valid plain code, -10 otherwise."""
    if own_answer(trajectory) is None:
        return WORST
    return BEST if record_of(trajectory).get("form") == "hybrid" else 0.0


@component("seed003_repetition")
def seed003_repetition(trajectory: Trajectory) -> float:
    """10 x (share of distinct word 3-grams in the prompts - 1): 0 without repetition, approaching -10."""
    if own_answer(trajectory) is None:
        return WORST
    words = after_thinking(str(record_of(trajectory).get("prompt_text") or "")).split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return BEST * (len(set(grams)) / len(grams) - 1) if grams else 0.0


def _banded(value: float, bands: tuple[tuple[float, float], ...], beyond: float) -> float:
    return next((score for most, score in bands if value <= most), beyond)
