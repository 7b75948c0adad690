"""Compares workflows on the same tasks with the same seeds and budget: scores with intervals, cost, and the frontier.

Test tasks are for this report only: nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from midstream.workflows import ir
from midstream.workflows.search.evaluation import (
    Evaluated,
    Evaluation,
    WorkflowEvaluator,
    Written,
    paired_difference,
)
from midstream.workflows.search.made import Made


@dataclass(frozen=True, slots=True)
class Entry:
    """What is compared under one name: one workflow, or those that a policy wrote, and what it took to get there."""

    workflow: Evaluated
    made: Made | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One entry. Tokens, costs, calls and seconds are means over runs; None where unknown. `difference` is to the first
    row, with its interval."""

    name: str
    tasks: int
    score: float | None
    low: float
    high: float
    difference: tuple[float, float, float] | None
    tokens: float | None
    """Of a run, those of writing the workflow included."""
    writer_tokens: float
    """Of writing the workflow; 0 for one that is fixed."""
    cost_usd: float | None
    """Of the run, without writing the workflow."""
    model_calls: float
    latency_s: float
    failed: int
    """Runs that gave no answer, over the budget for example."""
    outages: int
    """Runs without a score because a service did not answer."""
    on_frontier: bool
    """No other entry scores at least as well with fewer tokens (model calls where tokens are unknown)."""
    made: Made | None = None
    """What it took to find the workflow, or to train the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, in the order given. `most_tokens` was the budget of each run."""

    rows: tuple[Row, ...]
    most_tokens: int | None
    tasks: str = ""
    """Name of the task set."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def compare(
    entries: Mapping[str, Entry | ir.Workflow],
    evaluator: WorkflowEvaluator,
    most_tokens: int | None = None,
    tasks: str = "",
) -> Comparison:
    """Evaluate every entry on all tasks of the evaluator."""
    given = {name: one if isinstance(one, Entry) else Entry(one) for name, one in entries.items()}
    evaluations = {name: await evaluator.evaluate(one.workflow) for name, one in given.items()}
    first = next(iter(evaluations.values()))
    rows = tuple(_row(name, given[name], evaluation, first, evaluations) for name, evaluation in evaluations.items())
    return Comparison(rows=rows, most_tokens=most_tokens, tasks=tasks)


def _row(
    name: str, entry: Entry, evaluation: Evaluation, first: Evaluation, everything: Mapping[str, Evaluation]
) -> Row:
    outcomes, count = evaluation.outcomes, max(1, len(evaluation.outcomes))
    low, high = evaluation.interval()
    shared = evaluation is not first and bool(evaluation.by_task.keys() & first.by_task.keys())
    return Row(
        name=name,
        tasks=len(evaluation.by_task),
        score=evaluation.score,
        low=low,
        high=high,
        difference=paired_difference(evaluation, first) if shared else None,
        tokens=None if evaluation.tokens is None else evaluation.tokens / count,
        writer_tokens=_writer_tokens(entry.workflow, evaluation),
        cost_usd=None if evaluation.cost_usd is None else evaluation.cost_usd / count,
        model_calls=evaluation.model_calls / count,
        latency_s=sum(one.latency_s for one in outcomes) / count,
        failed=sum(one.answer is None and one.score is not None for one in outcomes),
        outages=sum(one.score is None for one in outcomes),
        on_frontier=_on_frontier(evaluation, everything),
        made=entry.made,
    )


def _writer_tokens(workflow: Evaluated, evaluation: Evaluation) -> float:
    if isinstance(workflow, ir.Workflow) or not evaluation.outcomes:
        return 0.0
    written: Mapping[str, Written] = workflow
    return fmean(written[one.task].tokens for one in evaluation.outcomes)


def _on_frontier(evaluation: Evaluation, everything: Mapping[str, Evaluation]) -> bool:
    known = all(one.tokens is not None for one in everything.values())

    def expense(one: Evaluation) -> float:
        return float(one.tokens or 0) if known else float(one.model_calls)

    def better(other: Evaluation) -> bool:
        if other is evaluation or other.score is None or evaluation.score is None:
            return False
        no_worse = other.score >= evaluation.score and expense(other) <= expense(evaluation)
        return no_worse and (other.score > evaluation.score or expense(other) < expense(evaluation))

    return evaluation.score is not None and not any(map(better, everything.values()))
