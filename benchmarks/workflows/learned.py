"""What runs of `configs/workflow_smollm2.yaml` score on test tasks, beside the best constant workflow.

    python benchmarks/workflows/learned.py runs/writer_0 runs/writer_1 --cache replies.sqlite

Reads the evaluations of each run (before training, after the warm start, after reinforcement learning), scores the
constant workflows of `constant.py` on the same tasks with the same executor, and prints scores, differences by task to
the best constant workflow with bootstrap intervals, the share of valid workflows, the tokens of a task (the writer's
and the executor's), and scores by sort. The best constant workflow is the one with the best score on these test tasks,
which favours it. Rows `all runs` are means over the runs; their intervals are over tasks, for these runs.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from constant import evaluated

from midstream.core.statistics import bootstrap_mean
from midstream.core.types import Task, Trajectory
from midstream.record.store import Store
from midstream.tasks.assorted import SORTS

LABELS = ("base", "warm start", "final")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: score and tokens by task id, and the share of valid workflows."""

    scores: Mapping[str, float]
    tokens: Mapping[str, float]
    valid: float


def read_run(path: Path, label: str) -> tuple[Row, list[Task]]:
    """Read one evaluation on the test split from the store of a run, with its tasks."""
    prefix = f"test-{label.replace(' ', '-')}-"
    with Store(path / "store.sqlite", read_only=True) as store:
        found = [one for one in store.trajectories.iterate(channel="test") if one.uid.startswith(prefix)]
    if not found:
        raise SystemExit(f"{path} has no evaluation '{label}' on test tasks")
    row = Row(
        {one.task.id: one.rewards["workflow_solved"] or 0.0 for one in found},
        {one.task.id: _tokens(one) for one in found},
        fmean(bool(one.metadata["workflow"]["valid"]) for one in found),
    )
    return row, [one.task for one in found]


def _tokens(trajectory: Trajectory) -> float:
    record = trajectory.metadata["workflow"]
    written = sum(len(step.prompt_ids) + len(step.response_ids) for step in trajectory.steps if step.role == "policy")
    return written + (record.get("prompt_tokens") or 0) + (record.get("completion_tokens") or 0)


def mean_of(rows: Sequence[Row]) -> Row:
    """The mean over runs, by task."""
    tasks = rows[0].scores
    return Row(
        {task: fmean(row.scores[task] for row in rows) for task in tasks},
        {task: fmean(row.tokens[task] for row in rows) for task in tasks},
        fmean(row.valid for row in rows),
    )


def print_table(rows: Mapping[str, Row], reference: str, tasks: Sequence[Task]) -> None:
    heading = "  ".join(f"{sort} ({sum(task.metadata['sort'] == sort for task in tasks)})" for sort in SORTS)
    print(f"\n{'workflow':28} score (95 %)       to {reference} (95 %)   valid  tokens  {heading}")
    for name, row in rows.items():
        scores = [row.scores[task.id] for task in tasks]
        gaps = [row.scores[task.id] - rows[reference].scores[task.id] for task in tasks]
        (low, high), (gap_low, gap_high) = bootstrap_mean(scores), bootstrap_mean(gaps)
        by_sort = [fmean(row.scores[task.id] for task in tasks if task.metadata["sort"] == sort) for sort in SORTS]
        shown = f"{fmean(scores):.2f} ({low:.2f}-{high:.2f})   {fmean(gaps):+.2f} ({gap_low:+.2f} to {gap_high:+.2f})"
        sorts = "  ".join(f"{one:.2f}" for one in by_sort)
        print(f"{name:28} {shown}   {row.valid:.2f}  {fmean(row.tokens.values()):5.0f}  {sorts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cache", type=Path, help="file for the executor's replies, which a later run reads")
    options = parser.parse_args()

    read = {label: [read_run(path, label) for path in options.runs] for label in LABELS}
    tasks = read["base"][0][1]
    if any(set(row.scores) != {task.id for task in tasks} for found in read.values() for row, _ in found):
        raise SystemExit("the runs were evaluated on different tasks")

    table: dict[str, Row] = {}
    for name, one in asyncio.run(evaluated(tasks, options.model, options.cache)).items():
        table[name] = Row(one.by_task, {each.task: each.tokens or 0 for each in one.outcomes}, 1.0)
    best = max(table, key=lambda name: fmean(table[name].scores.values()))
    for label, found in read.items():
        rows = [row for row, _ in found]
        table |= {f"{path.name}, {label}": row for path, row in zip(options.runs, rows, strict=True)}
        table[f"all runs, {label}"] = mean_of(rows)
    print_table(table, best, tasks)


if __name__ == "__main__":
    main()
