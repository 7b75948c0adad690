"""Evaluates a workflow on tasks: repeated, with intervals, and stopped early when it is clearly behind the best one.

Repeats use the same seeds for every candidate, so that a difference is the workflow's. A problem on which a service
did not answer has no score; it is not a 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from midstream.core.errors import EngineError
from midstream.core.seeds import derive_seed
from midstream.core.statistics import bootstrap_mean
from midstream.core.types import Task
from midstream.rewards.workflows import graded
from midstream.workflows import ir
from midstream.workflows.run.runner import WorkflowInput, WorkflowRunner
from midstream.workflows.run.trace import RunStatus, WorkflowRun, known_sum
from midstream.workflows.search.racing import behind, differences

Grade = Callable[[str, Task], Awaitable[float | None]]
"""Grades an answer, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a policy wrote for one task: the workflow, None for a text that is none, and the tokens of its prompt and
    reply."""

    workflow: ir.Workflow | None
    tokens: int = 0


Evaluated = ir.Workflow | Mapping[str, Written]
"""One workflow for all tasks, or the one that was written for each, by task id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run on one task. `score` is None when a service did not answer."""

    task: str
    repeat: int
    score: float | None
    answer: str | None
    error: str
    tokens: int | None
    """Of the run, and of writing the workflow."""
    cost_usd: float | None
    model_calls: int
    cached_calls: int
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All runs of one workflow, in order of tasks and repeats. `stopped` says that it was given up early."""

    outcomes: tuple[Outcome, ...]
    stopped: bool = False

    @property
    def by_task(self) -> dict[str, float]:
        """Mean score by task id."""
        found: dict[str, list[float]] = {}
        for one in self.outcomes:
            if one.score is not None:
                found.setdefault(one.task, []).append(one.score)
        return {task: fmean(scores) for task, scores in found.items()}

    @property
    def score(self) -> float | None:
        """Mean over tasks; None when nothing was scored."""
        scores = self.by_task.values()
        return fmean(scores) if scores else None

    def interval(self, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of the score over tasks; (0, 1) when nothing was scored."""
        scores = list(self.by_task.values())
        if not scores:
            return 0.0, 1.0
        low, high = bootstrap_mean(scores, seed, confidence, 2000)
        return low, high

    @property
    def tokens(self) -> int | None:
        total = known_sum(one.tokens for one in self.outcomes)
        return None if total is None else int(total)

    @property
    def cost_usd(self) -> float | None:
        return known_sum(one.cost_usd for one in self.outcomes)

    @property
    def model_calls(self) -> int:
        return sum(one.model_calls for one in self.outcomes)


class WorkflowEvaluator:
    """Evaluates workflows on a fixed list of tasks.

    `repeats` runs of each task; `batch` tasks at once, after each of which a candidate may be given up: when it is
    behind the best one on the tasks of both, at `confidence` (`racing.behind`)."""

    def __init__(
        self,
        runner: WorkflowRunner,
        tasks: Sequence[Task],
        *,
        repeats: int = 1,
        batch: int = 16,
        seed: int = 0,
        confidence: float = 0.95,
        least_tasks: int = 8,
        grade: Grade = graded,
    ) -> None:
        self.runner, self.tasks = runner, tuple(tasks)
        self.repeats, self.batch, self.seed = repeats, batch, seed
        self.confidence, self.least_tasks, self.grade = confidence, least_tasks, grade

    def on(self, tasks: Sequence[Task], *, repeats: int | None = None, seed: int | None = None) -> WorkflowEvaluator:
        """An evaluator on other tasks, else with the same settings unless others are given."""
        return WorkflowEvaluator(
            self.runner,
            tasks,
            repeats=self.repeats if repeats is None else repeats,
            batch=self.batch,
            seed=self.seed if seed is None else seed,
            confidence=self.confidence,
            least_tasks=self.least_tasks,
            grade=self.grade,
        )

    async def evaluate(
        self,
        workflow: Evaluated,
        *,
        to_beat: Mapping[str, float] | None = None,
        on_run: Callable[[Task, WorkflowRun, float | None], None] | None = None,
    ) -> Evaluation:
        """Run the workflow, or each task's own, on all tasks. A task for which none was written scores 0. `to_beat` are
        scores by task of a workflow; one that is clearly behind it is not worth the tokens of the rest."""
        outcomes: list[Outcome] = []
        for start in range(0, len(self.tasks), self.batch):
            batch = self.tasks[start : start + self.batch]
            outcomes += await asyncio.gather(
                *(self._one(workflow, task, repeat, on_run) for task in batch for repeat in range(self.repeats))
            )
            done = start + len(batch)
            if to_beat is not None and self.least_tasks <= done < len(self.tasks):
                evaluation = Evaluation(outcomes=tuple(outcomes), stopped=True)
                if behind(evaluation.by_task, to_beat, self.confidence):
                    return evaluation
        return Evaluation(outcomes=tuple(outcomes))

    async def _one(
        self,
        workflow: Evaluated,
        task: Task,
        repeat: int,
        on_run: Callable[[Task, WorkflowRun, float | None], None] | None,
    ) -> Outcome:
        written = Written(workflow) if isinstance(workflow, ir.Workflow) else workflow[task.id]
        run = await self._run(written, task, derive_seed(self.seed, task.id, repeat))
        score: float | None = 0.0
        if run.status is RunStatus.COMPLETED and run.answer is not None:
            score = await self.grade(run.answer, task)
        elif run.cause == "infrastructure":
            score = None
        if on_run is not None:
            on_run(task, run, score)
        return Outcome(
            task=task.id,
            repeat=repeat,
            score=score,
            answer=run.answer,
            error=run.error,
            tokens=None if run.tokens is None else run.tokens + written.tokens,
            cost_usd=run.cost_usd,
            model_calls=run.model_calls,
            cached_calls=run.cached_calls,
            latency_s=run.latency_s,
        )

    async def _run(self, written: Written, task: Task, seed: int) -> WorkflowRun:
        if written.workflow is None:
            error = "no workflow that may run was written"
            return WorkflowRun(answer=None, status=RunStatus.FAILED, error=error, cause="workflow")
        given = WorkflowInput.of(task)
        return await self.runner.run(written.workflow, given, seed=seed, spent_tokens=written.tokens)


def paired_difference(one: Evaluation, other: Evaluation, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean difference of scores over the tasks both have, and its interval (bootstrap over tasks). Raises `EngineError`
    when they share no scored task."""
    found = list(differences(one.by_task, other.by_task).values())
    if not found:
        raise EngineError("the two evaluations share no scored task")
    low, high = bootstrap_mean(found, 0, confidence, 2000)
    return fmean(found), low, high
