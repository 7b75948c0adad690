"""The examples run as scripts, finish, and increase their reward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", params=["own_agent", "own_tasks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run directory and output of an example."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(EXAMPLES / f"{request.param}.py")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / request.param, done.stdout


def test_the_example_finishes_with_every_step_recorded(trained: tuple[Path, str]) -> None:
    run, printed = trained
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "finished" and info["model"] == "tiny"
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 10
    assert f"\nstep {steps[-1]}: reward " in printed
    assert (run / "curve.png").is_file() and (run / "report.html").is_file()


def test_the_store_has_the_tokens_of_every_trajectory(trained: tuple[Path, str]) -> None:
    from midstream.record.store import Store

    run, _ = trained
    with Store(run / "store.sqlite") as store:
        first = list(store.trajectories.iterate(channel="train", train_step=1))
        assert len(first) == 64
        assert all(step.response_ids and step.trainable for trajectory in first for step in trajectory.steps)


def test_the_weights_changed_and_the_reward_rose(trained: tuple[Path, str]) -> None:
    import torch
    from safetensors.torch import load_file

    from midstream.engines.models import resolve

    run, _ = trained
    newest = max((run / "checkpoints").glob("step-*"))
    before, after = (load_file(folder / "model.safetensors") for folder in (resolve("tiny"), newest))
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    rewards = [row["reward"] for row in rows(run / "metrics.jsonl")]
    assert sum(rewards[:3]) / 3 < 0.2 and sum(rewards[-3:]) / 3 > 0.8
    evaluations = {row["label"]: row["success"] for row in rows(run / "evals.jsonl")}
    assert evaluations["base"] == 0 and evaluations["final"] > 0.8


def test_the_example_is_short() -> None:
    for path in EXAMPLES.glob("own_*.py"):
        _, _, body = path.read_text().partition('"""\n\n')
        assert len([line for line in body.splitlines() if line.strip()]) < 40, path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
