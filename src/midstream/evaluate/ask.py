"""Asks an agent one question and returns the whole trajectory. Writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.blocking import run_blocking
from midstream.core.types import Task, Trajectory
from midstream.evaluate.agent import find_agent, last_finished, load_agent
from midstream.evaluate.runs import find_run
from midstream.gateway.in_process import InProcessGateway

if TYPE_CHECKING:
    from midstream.learn.config import TrainConfig

NOT_NEEDED: Mapping[str, Mapping[str, Any] | None] = {
    "tasks": {"sources": [{"type": "direct"}]},
    "reward": {"failed": 0.0},
}
"""Sections of a config that answering a question does not need. The files they name may be missing."""


def ask(
    question: str,
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    model: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    runs_dir: str | Path = "runs",
    trust: bool = False,
) -> Trajectory:
    """Ask an agent `question` with greedy sampling and return its trajectory.

    The agent comes from a `run` (its newest checkpoint; a folder, or a name in `runs_dir`), a `checkpoint`, a `config`
    or a `model`; by default from the last finished run in `runs_dir`. The config of a run or checkpoint from outside
    `runs_dir` may only name built-in flows and tools, unless `trust`. `metadata` is the task's metadata, passed to the
    flow as keyword arguments. `ask_async` is the async form.
    """
    return run_blocking(
        ask_async(
            question,
            run=run,
            checkpoint=checkpoint,
            config=config,
            model=model,
            metadata=metadata,
            runs_dir=runs_dir,
            trust=trust,
        )
    )


async def ask_async(
    question: str,
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    model: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    runs_dir: str | Path = "runs",
    trust: bool = False,
) -> Trajectory:
    """Async form of `ask`."""
    if run is None and checkpoint is None and config is None and model is None:
        run = last_finished(runs_dir)
    elif run is not None:
        run = find_run(str(run), runs_dir)
    source = find_agent(config=config, run=run, checkpoint=checkpoint, model=model, runs_dir=runs_dir)
    task = Task(id="question", prompt=question, kind="question", split="test", metadata=metadata or {})
    async with InProcessGateway() as endpoint:
        parts = await asyncio.to_thread(load_agent, source, sections=NOT_NEEDED, trust=trust, endpoint=endpoint)
        return (await parts.evaluate([task], "ask", channel="ask"))[0]
