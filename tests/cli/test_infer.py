"""`midstream infer` and `midstream devices`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from midstream.cli import run
from midstream.cli.devices import find_devices


def test_a_policy_that_was_trained_writes_a_workflow_for_a_problem(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed's command, with a small model: its config is trained for a step, and its checkpoint answers."""
    from midstream import api

    config = {
        "name": "w",
        "policy": {"model": str(tiny_path), "tuning": "full"},
        "tasks": {"sources": [{"type": "calculate"}]},
        "flow": {"name": "workflow_writer", "settings": {"operators": ["Custom"], "example": "", "guide": "Write."}},
        "reward": {"preset": "seed003-5", "success": "workflow_solved"},
        "rollout": {"tasks_per_step": 2, "group_size": 2, "sampling": {"max_tokens": 4}},
        "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
        "trainer": {"max_steps": 1, "eval_every": 0, "test_tasks": 0, "threads": 1, "run_dir": str(tmp_path / "run")},
    }
    result = api.train(config, callbacks=())
    checkpoint = next((result.run_dir / "checkpoints").iterdir())
    given = ["infer", "--checkpoint", str(checkpoint), "--problem", "What is 15 + 27?", "--problem-type", "math"]
    assert run([*given, "--ground-truth", "42", "--trust"]) == 1  # nothing that tiny writes is a workflow
    said = capsys.readouterr().out
    assert "there is no class Workflow" in said and "reward (seed003-5): -10.00" in said
    assert "reward (workflow): -0.20" in said


def test_devices_are_shown_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_devices() == [] and run(["devices"]) == 0
    assert "no GPU here" in capsys.readouterr().out
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*gpu=*) echo 'GPU-a, 0, NVIDIA H100, 3, 81559, 0'; echo 'GPU-b, 1, NVIDIA H100, 70000, 81559, 97' ;;\n"
        "*) echo 'GPU-b, 3819483' ;;\nesac\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    one, other = find_devices()
    assert one.idle and not other.idle and other.processes == (3819483,)
    assert run(["devices"]) == 0
    said = capsys.readouterr().out
    assert "CUDA_VISIBLE_DEVICES=0 midstream train" in said and "in use by 1 processes" in said
    assert run(["devices", "--force-clean"]) == 2  # there is no way to end a process
