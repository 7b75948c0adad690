"""Lets trained policies write workflows for tasks, for comparison with fixed and searched ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError, RunError
from midstream.core.failures import Failure, failure_of
from midstream.core.text import after_thinking
from midstream.core.types import Task, Trajectory
from midstream.evaluate.agent import find_agent, load_agent
from midstream.evaluate.runs import Run, find_run, load_run
from midstream.record.store import Store
from midstream.workflows.checker import check_text
from midstream.workflows.flow import WorkflowWriterSettings
from midstream.workflows.search.comparison import Entry
from midstream.workflows.search.evaluation import Written
from midstream.workflows.search.made import Made

FLOW = "workflow_writer"
_NOT_RUN = "flow.settings.run.most_model_calls=0"
"""The comparison runs the written workflows, so the flow need not."""


async def written_workflows(
    run: str | Path, tasks: Sequence[Task], *, runs_dir: str | Path = "runs", trust: bool = False
) -> Entry:
    """Return the workflows that the policy of a run writes for `tasks`, greedily, and the expense of its training.
    Raises `ConfigError` for a run of another flow, and `RunError` when infrastructure failed."""
    folder = find_run(str(run), runs_dir)
    source = find_agent(run=folder, runs_dir=runs_dir)
    if (source.config.get("flow") or {}).get("name") != FLOW:
        raise ConfigError(f"the run '{run}' did not train a policy that writes workflows", f"its flow must be {FLOW}")
    parts = await asyncio.to_thread(load_agent, source, [_NOT_RUN], trust=trust)
    settings = WorkflowWriterSettings.model_validate(parts.config.flow.settings)
    trajectories = await parts.evaluate(tasks, "compare", channel="test")
    written = {one.task.id: _written(one, settings) for one in trajectories}
    return Entry(written, await asyncio.to_thread(training_expense, load_run(folder)))


def training_expense(run: Run) -> Made:
    """Return the tokens of a training run: those of the policy and of the executor, including prompts."""
    tokens = calls = trajectories = 0
    known, cost = True, 0.0
    with Store(run.path / "store.sqlite", read_only=True) as store:
        for one in store.trajectories.iterate(channel="train"):
            trajectories += 1
            record: dict[str, Any] = one.metadata.get("workflow") or {}
            counted = [record.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
            known = known and None not in counted and record.get("cost_usd", 0.0) is not None
            tokens += sum(len(step.prompt_ids) + len(step.response_ids) for step in one.steps if step.role == "policy")
            tokens += sum(counted) if known else 0
            cost += record.get("cost_usd") or 0.0
            calls += (record.get("model_calls") or 0) + 1
    return Made(
        how=f"reinforcement learning, {len(run.rl)} steps, {trajectories} workflows",
        tokens=tokens if known else None,
        cost_usd=cost if known else None,
        model_calls=calls,
        seconds=sum(float(row.get("time_s") or 0) for row in run.metrics),
    )


def _written(trajectory: Trajectory, settings: WorkflowWriterSettings) -> Written:
    if failure_of(trajectory) is Failure.INFRASTRUCTURE:
        raise RunError(f"no workflow was written for the task '{trajectory.task.id}': {trajectory.error}")
    steps = [step for step in trajectory.steps if step.role == "policy"]
    tokens = sum(len(step.prompt_ids) + len(step.response_ids) for step in steps)
    if not steps or not trajectory.metadata.get("workflow", {}).get("valid"):
        return Written(None, tokens)
    return Written(
        check_text(after_thinking(steps[-1].text), settings.operator_set, settings.limits, ("",)).workflow, tokens
    )
