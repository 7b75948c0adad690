"""One question to an agent, and everything it did to answer. Writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.types import Task, Trajectory
from midstream.evaluate.agent import find_agent, load_agent

if TYPE_CHECKING:
    from midstream.learn.config import TrainConfig

# What a run was trained and graded on does not matter to a question, and may not even be there any more.
_NOT_NEEDED: Mapping[str, Mapping[str, Any] | None] = {"tasks": {"sources": [{"type": "direct"}]}, "reward": None}


def ask(
    question: str,
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    model: str | None = None,
) -> Trajectory:
    """Put `question` to the agent of a run (its newest checkpoint), of a checkpoint or of a config; greedy."""
    from midstream.learn.held_out import attempt

    source = find_agent(config=config, run=run, checkpoint=checkpoint, model=model)
    parts = load_agent(source, sections=_NOT_NEEDED)
    task = Task(id="question", prompt=question, kind="question", split="test")
    return asyncio.run(attempt(parts, [task], "ask", 0, None, "ask"))[0]
