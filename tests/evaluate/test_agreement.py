"""Comparison of two runs: everything except timings must agree."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from midstream.core.errors import RunError
from midstream.core.types import Step, Task, Trajectory
from midstream.evaluate.agreement import differences
from midstream.record.store import Store


@pytest.fixture
def two(run_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same run twice, the second slower."""
    for step in (20, 40):
        folder = run_dir / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        (folder / "config.yaml").write_text(str(run_dir))
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    step_ = Step(
        prompt_ids=(1,), response_ids=(2, 3), rollout_log_probs=(-0.5, -1.0), trajectory_uid="t", latency_s=1.0
    )
    with Store(run_dir / "store.sqlite") as store:
        asyncio.run(
            store.trajectories.finish(
                Trajectory(uid="t", prompt_uid="p", task=Task(id="a", prompt="q"), steps=(step_,))
            )
        )
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    slower = [{**row, **{key: 9.9 for key in row if key.endswith("_s")}} for row in rows]
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slower))
    (other / "checkpoints" / "step-000040" / "config.yaml").write_text("elsewhere")
    return run_dir, other


def test_timings_are_ignored(two: tuple[Path, Path]) -> None:
    assert differences(*two) == []


def test_a_changed_byte_of_the_weights_is_a_difference(two: tuple[Path, Path]) -> None:
    (two[1] / "checkpoints" / "step-000040" / "adapter_model.safetensors").write_bytes(b"weightz")
    assert differences(*two) == ["step-000040/adapter_model.safetensors"]


def test_a_changed_log_value_or_token_is_a_difference(two: tuple[Path, Path]) -> None:
    with (two[1] / "evals.jsonl").open("a") as log:
        log.write('{"label": "final", "step": 41}\n')
    step = Step(prompt_ids=(1,), response_ids=(2, 4), rollout_log_probs=(-0.5, -1.0), trajectory_uid="t")
    task = Task(id="a", prompt="q")
    with Store(two[1] / "store.sqlite") as store:
        store.trajectories.begin("t", "p", task, "train")
        asyncio.run(store.trajectories.finish(Trajectory(uid="t", prompt_uid="p", task=task, steps=(step,))))
    assert differences(*two) == ["evals.jsonl", "trajectories"]


def test_a_run_without_checkpoint_cannot_be_compared(run_dir: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        differences(run_dir, run_dir)
