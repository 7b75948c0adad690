"""Preference pairs from a search: for a task, the candidate that solved it best and the one that solved it worst.

As in ScoreFlow (Wang et al. 2025, arXiv 2502.04306) pairs come from scores of executed workflows; a policy that writes
workflows is then trained on them with `algorithm: dpo`. The candidates are those of a search on validation tasks; they
are scored again on training tasks, so that no validation task is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from midstream.core.errors import RunError
from midstream.core.types import Task
from midstream.tasks import load_tasks
from midstream.tasks.taskset import check, take
from midstream.workflows import ir
from midstream.workflows.config import WorkflowConfig
from midstream.workflows.hybrid import read_workflow
from midstream.workflows.model import Model
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator
from midstream.workflows.search.search import LOG
from midstream.workflows.write_python import write_code

MOST_CANDIDATES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two workflows for one task, in the hybrid form, with their scores on it."""

    task: Task
    better: str
    worse: str
    better_score: float
    worse_score: float


async def search_pairs(config: WorkflowConfig, count: int, models: Mapping[str, Model] | None = None) -> list[Pair]:
    """Pairs from the candidates of the config's search, on its first `count` training tasks. A task on which all
    candidates score the same gives none. Raises `RunError` when the search has not run."""
    from midstream.workflows.search.session import open_runner

    tasks = load_tasks(config.tasks)
    check(tasks, ["train"])
    chosen = take(tasks, "train", count)
    workflows = _candidates(config)
    async with open_runner(config, models) as (runner, _):
        evaluator = WorkflowEvaluator(runner, chosen, repeats=config.search.repeats, seed=config.search.seed)
        evaluations = [(one, await evaluator.evaluate(one)) for one in workflows]
    return [pair for task in chosen if (pair := _pair(task, evaluations)) is not None]


def _candidates(config: WorkflowConfig) -> list[ir.Workflow]:
    """The candidates with the best scores, and the first."""
    path = config.folder / LOG
    if not path.is_file():
        raise RunError(f"there is no search in '{config.folder}'", "run midstream workflow search first")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    scored = [line for line in lines if line["score"] is not None]
    ranked = sorted(scored[1:], key=lambda line: -line["score"])[: MOST_CANDIDATES - 1]
    return [read_workflow(line["workflow"], config.operator_set, config.limits) for line in [*scored[:1], *ranked]]


def _pair(task: Task, evaluations: Sequence[tuple[ir.Workflow, Evaluation]]) -> Pair | None:
    """The best and the worst candidate for a task. Of equal scores the one with fewer tokens is better."""

    def merit(one: tuple[ir.Workflow, Evaluation]) -> tuple[float, float]:
        tokens = [outcome.tokens or 0 for outcome in one[1].outcomes if outcome.task == task.id]
        return one[1].by_task[task.id], -fmean(tokens)

    known = sorted((one for one in evaluations if task.id in one[1].by_task), key=merit)
    if len(known) < 2:
        return None
    worse, better = known[0], known[-1]
    scores = [one[1].by_task[task.id] for one in (worse, better)]
    if scores[0] == scores[1]:
        return None
    return Pair(
        task=task, better=_written(better[0]), worse=_written(worse[0]), better_score=scores[1], worse_score=scores[0]
    )


def _written(workflow: ir.Workflow) -> str:
    """The hybrid form in one line, as a policy writes it."""
    return json.dumps({"prompts": dict(workflow.prompts), "graph_code": write_code(workflow)}, ensure_ascii=False)
