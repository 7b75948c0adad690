"""Chooses among the best candidates of a search: sequential halving (Karnin, Koren and Somekh 2013), on tasks that the
search did not choose them by where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from midstream.core.types import Task
from midstream.workflows import ir
from midstream.workflows.search.candidate import Candidate
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator


async def choose(
    finalists: Sequence[Candidate],
    read: Callable[[Candidate], ir.Workflow],
    evaluator: WorkflowEvaluator,
    weight: int = 1,
) -> tuple[Candidate, list[Evaluation]]:
    """The best of `finalists`, which are given best first, and the evaluations that this took.

    The tasks of `evaluator` are cut into as many parts as there are halvings. After each part the better half by mean
    score stays; the mean is over all runs, those of the search included (`weight` runs of each task there): every
    finalist was chosen by the same rule, so that this mean is the best estimate of each."""
    left = list(finalists)
    totals = {one.number: [sum(one.scores.values()) * weight, len(one.scores) * weight] for one in left}
    made: list[Evaluation] = []
    for part in _parts(evaluator.tasks, halvings(len(left))):
        for one in left:
            evaluation = await evaluator.on(part).evaluate(read(one))
            scores = [outcome.score for outcome in evaluation.outcomes if outcome.score is not None]
            totals[one.number][0] += sum(scores)
            totals[one.number][1] += len(scores)
            made.append(evaluation)
        ranked = sorted(left, key=lambda one: -totals[one.number][0] / max(1.0, totals[one.number][1]))
        left = ranked[: (len(ranked) + 1) // 2]
    return left[0], made


def expected_tokens(finalists: Sequence[Candidate], tasks: int, repeats: int) -> float:
    """Tokens that `choose` is expected to use, if the finalists with the longest runs stay."""
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
