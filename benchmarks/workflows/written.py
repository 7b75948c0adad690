"""Workflows that a policy wrote, compared with constant ones on the same test tasks.

    midstream train configs/workflow_smollm2.yaml trainer.run_dir=runs/seed0
    python benchmarks/workflows/written.py runs/seed0 runs/seed1 --cache runs/replies.sqlite

The constant workflows are the baselines `io` and `cot` and the shapes of the demonstrations, with the settings of the
runs. Those of the runs are their evaluations: the base model, after the demonstrations, and after reinforcement
learning. Runs of several seeds share the test tasks: a score is the mean over tasks of the mean over seeds. Prints
scores with their bootstrap intervals over tasks, the difference to the best constant workflow, and scores by sort.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean

from midstream.api import load_config
from midstream.core.statistics import bootstrap_mean
from midstream.core.types import Task
from midstream.learn.config import TrainConfig
from midstream.record.store import Store
from midstream.rewards.workflows import record_of
from midstream.tasks import load_tasks, take
from midstream.workflows import ir, read_workflow
from midstream.workflows.baselines import baseline
from midstream.workflows.cache import ResponseCache
from midstream.workflows.demonstrate import SHAPES
from midstream.workflows.executors import ExecutorConfig, open_models
from midstream.workflows.flow import WorkflowWriterSettings
from midstream.workflows.passages import open_passages
from midstream.workflows.run.runner import WorkflowRunner
from midstream.workflows.search.evaluation import WorkflowEvaluator

LABELS = {"base": "SmolLM2 without training", "warm start": "demonstrations only", "final": "after GRPO"}
Scores = Mapping[str, float]
"""Score by task id."""


def constants(settings: WorkflowWriterSettings, names: Sequence[str]) -> dict[str, ir.Workflow]:
    """The baselines of `names`, and the shapes that the operators of the runs allow."""
    operators = settings.operator_set
    shapes = {
        f"always {name}": read_workflow(shape.text(random.Random(0)), operators, settings.limits)
        for name, shape in SHAPES.items()
        if set(shape.operators.values()) <= set(operators) and shape.inputs == "problem"
    }
    return {name: baseline(name) for name in names} | shapes


async def scored(
    config: TrainConfig, tasks: Sequence[Task], names: Sequence[str], cache: Path | None
) -> dict[str, tuple[Scores, float]]:
    """Scores and mean tokens of the constant workflows."""
    settings = WorkflowWriterSettings.model_validate(config.flow.settings)
    found: dict[str, tuple[Scores, float]] = {}
    async with AsyncExitStack() as stack:
        models = await open_models(
            {"executor": ExecutorConfig(engine=config.policy.model)}, stack, ResponseCache(cache)
        )
        runner = WorkflowRunner(models, settings=settings.run, search=open_passages(settings.passages))
        await stack.enter_async_context(runner)
        for name, workflow in constants(settings, names).items():
            evaluation = await WorkflowEvaluator(runner, tasks, batch=len(tasks)).evaluate(workflow)
            found[name] = evaluation.by_task, (evaluation.tokens or 0) / len(tasks)
            print(f"{name}: {evaluation.score:.3f}", flush=True)
    return found


def written(run: Path, label: str) -> tuple[Scores, float, float]:
    """Scores by task, mean tokens (those of writing included) and the share of valid workflows of an evaluation."""
    prefix = f"test-{label.replace(' ', '-')}"
    scores: dict[str, float] = {}
    tokens: list[int] = []
    valid: list[bool] = []
    with Store(run / "store.sqlite", read_only=True) as store:
        for one in store.trajectories.iterate(channel="test"):
            if not one.uid.startswith(prefix):
                continue
            record = record_of(one)
            scores[one.task.id] = one.rewards.get("workflow_solved") or 0.0
            spent = sum(len(step.prompt_ids) + len(step.response_ids) for step in one.steps if step.role == "policy")
            tokens.append(spent + (record.get("prompt_tokens") or 0) + (record.get("completion_tokens") or 0))
            valid.append(bool(record.get("valid")))
    return scores, fmean(tokens), fmean(valid)


def over_seeds(runs: Sequence[Scores]) -> Scores:
    return {task: fmean(run[task] for run in runs) for task in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--config", type=Path, default=Path("configs/workflow_smollm2.yaml"), help="config of the runs")
    parser.add_argument("--baselines", nargs="*", default=["io", "cot"])
    parser.add_argument("--cache", type=Path, help="file for the executor's replies")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = load_config(options.config)
    tasks = take(load_tasks(config.tasks), "test", config.trainer.test_tasks)
    found = asyncio.run(scored(config, tasks, options.baselines, options.cache))
    best = max(found, key=lambda name: fmean(found[name][0].values()))
    rows: dict[str, tuple[Scores, float, float | None]] = {name: (*one, None) for name, one in found.items()}
    for label, shown in LABELS.items() if options.runs else ():
        seeds = [written(run, label) for run in options.runs]
        for run, one in zip(options.runs, seeds, strict=True):
            rows[f"{shown}, {run.name}"] = one
        if len(seeds) > 1:
            scores, tokens, valid = zip(*seeds, strict=True)
            rows[f"{shown}, all"] = over_seeds(scores), fmean(tokens), fmean(valid)
    print_table(rows, best, tasks)
    if options.json:
        options.json.write_text(json.dumps({name: row for name, row in rows.items()}, indent=2) + "\n")


def print_table(rows: Mapping[str, tuple[Scores, float, float | None]], best: str, tasks: Sequence[Task]) -> None:
    sorts = sorted({str(task.metadata["sort"]) for task in tasks})
    print(f"\n{'workflow':32} score (95 %)        to {best} (95 %)     tokens valid  " + "  ".join(sorts))
    for name, (scores, tokens, valid) in rows.items():
        values = [scores[task.id] for task in tasks]
        low, high = bootstrap_mean(values)
        gaps = [scores[task.id] - rows[best][0][task.id] for task in tasks]
        gap_low, gap_high = bootstrap_mean(gaps)
        by_sort = [fmean(scores[task.id] for task in tasks if task.metadata["sort"] == sort) for sort in sorts]
        shown = f"{fmean(values):.2f} ({low:.2f}-{high:.2f})   {fmean(gaps):+.2f} ({gap_low:+.2f} to {gap_high:+.2f})"
        share = "" if valid is None else f"{valid:.2f}"
        print(f"{name:32} {shown}   {tokens:5.0f}  {share:5}  {'  '.join(f'{one:.2f}' for one in by_sort)}")


if __name__ == "__main__":
    main()
