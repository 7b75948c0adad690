"""Compares two runs: weights and optimizer state byte for byte, logs, and every sampled token.

Ignores timings (log keys that end in `_s`, latencies, tensorboard files) and the config, which contains the run's
directory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from midstream.core.errors import RunError
from midstream.core.types import Trajectory
from midstream.evaluate.runs import read_rows

LOGS = ("metrics.jsonl", "evals.jsonl", "samples.jsonl")


def contents(run_dir: str | Path) -> dict[str, Any]:
    """Return the contents of a run that must not depend on its speed or on how often it was resumed, by name."""
    from midstream.learn.run.checkpoint import checkpoints
    from midstream.record.store import Store

    run_dir = Path(run_dir)
    found = checkpoints(run_dir)
    if not found:
        raise RunError(f"the run '{run_dir}' has no checkpoint to compare")
    newest = found[-1]
    result: dict[str, Any] = {"checkpoint": newest.name}
    for file in sorted(newest.rglob("*")):
        if file.is_file() and file.name != "config.yaml":
            result[f"{newest.name}/{file.relative_to(newest)}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name in LOGS:
        result[name] = [
            {key: value for key, value in row.items() if not key.endswith("_s")} for row in read_rows(run_dir / name)
        ]
    with Store(run_dir / "store.sqlite", read_only=True) as store:
        result["trajectories"] = {trajectory.uid: _compared(trajectory) for trajectory in store.trajectories.iterate()}
    return result


def differences(one: str | Path, other: str | Path) -> list[str]:
    """Return the names of contents that differ between two runs; empty if they agree."""
    left, right = contents(one), contents(other)
    return [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]


def _compared(trajectory: Trajectory) -> tuple[Any, ...]:
    steps = [(s.prompt_ids, s.response_ids, s.rollout_log_probs, s.adapter, s.policy_version) for s in trajectory.steps]
    return trajectory.status, trajectory.answer, dict(trajectory.rewards), steps
