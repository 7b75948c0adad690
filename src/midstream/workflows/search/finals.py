"""Chooses among the best candidates of a search: sequential halving (Karnin, Koren and Somekh 2013), on tasks that the
search did not choose them by where there are any."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from midstream.core.types import Task
from midstream.workflows import ir
from midstream.workflows.run.trace import known_sum
from midstream.workflows.search.candidate import Candidate
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of the finalists was chosen, by number, and what that took. `score` is the chosen one's mean over the tasks
    of the choice alone; None when there was nothing to choose."""

    finalists: tuple[int, ...]
    chosen: int
    score: float | None = None
    tokens: int | None = 0
    cost_usd: float | None = 0.0
    model_calls: int = 0
    seconds: float = 0.0


async def choose_finalist(
    finalists: Sequence[Candidate],
    read: Callable[[Candidate], ir.Workflow],
    evaluator: WorkflowEvaluator,
    weight: int = 1,
) -> Choice:
    """Choose the best of `finalists`, which are given best first.

    The tasks of `evaluator` are cut into as many parts as there are halvings. After each part the better half by mean
    score stays; the mean is over all runs, those of the search included (`weight` runs of each task there): every
    finalist was chosen by the same rule, so that this mean is the best estimate of each."""
    began, left = time.perf_counter(), list(finalists)
    before = {one.number: [*one.scores.values()] * weight for one in left}
    scores: dict[int, list[float]] = {one.number: [] for one in left}
    made: list[Evaluation] = []
    for part in _parts(evaluator.tasks, halvings(len(left))):
        for one in left:
            evaluation = await evaluator.on(part).evaluate(read(one))
            scores[one.number] += [outcome.score for outcome in evaluation.outcomes if outcome.score is not None]
            made.append(evaluation)
        left.sort(key=lambda one: -fmean([*before[one.number], *scores[one.number]]))
        left = left[: (len(left) + 1) // 2]
    tokens = known_sum(one.tokens for one in made)
    chosen = left[0].number
    return Choice(
        finalists=tuple(one.number for one in finalists),
        chosen=chosen,
        score=fmean(scores[chosen]) if scores[chosen] else None,
        tokens=None if tokens is None else int(tokens),
        cost_usd=known_sum(one.cost_usd for one in made),
        model_calls=sum(one.model_calls for one in made),
        seconds=round(time.perf_counter() - began, 3),
    )


def expected_tokens(finalists: Sequence[Candidate], tasks: int, repeats: int) -> float:
    """Tokens that `choose_finalist` is expected to use, if the finalists with the longest runs stay."""
    rounds, total = halvings(len(finalists)), 0.0
    runs = sorted((one.run_tokens for one in finalists), reverse=True)
    for _ in range(rounds):
        total += sum(runs) * tasks * repeats / rounds
        runs = runs[: (len(runs) + 1) // 2]
    return total


def halvings(count: int) -> int:
    """How often `count` candidates are halved until one is left."""
    return max(0, count - 1).bit_length()


def _parts(tasks: Sequence[Task], count: int) -> list[Sequence[Task]]:
    return [tasks[len(tasks) * part // count : len(tasks) * (part + 1) // count] for part in range(count)]
