"""`midstream infer` and `midstream devices`."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from midstream.cli import run
from midstream.core.types import Step, Task, Trajectory
from midstream.engines.gpus import find_devices


def test_a_trained_policy_writes_a_workflow_for_a_problem(
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


def test_devices_are_listed(
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
    assert (
        "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0 midstream train" in said
        and "in use by 1 processes" in said
    )
    assert run(["devices", "--gpus", "7"]) == 2
    said = "".join(capsys.readouterr())
    assert "no GPU 7 here; there is 0, 1" in said and "the CPU is used" not in said
    assert run(["devices", "--force-clean"]) == 2  # there is no way to end a process


def test_the_ground_truth_of_code_is_tests_and_not_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "def f(x):\n    return x + 1"
    answered = Trajectory(
        uid="u", prompt_uid="p", task=Task(id="t", prompt="q", kind="code", metadata={"problem_type": "code"}),
        answer=program, steps=(Step(prompt_ids=(1,), response_ids=(2,)),),
        metadata={"workflow": {"valid": True, "status": "completed", "answer": program, "model_calls": 1}},
    )  # fmt: skip
    asked: list[str] = []

    def ask(problem: str, **_: Any) -> Trajectory:
        asked.append(problem)
        return answered

    monkeypatch.setattr("midstream.api.ask", ask)
    given = ["infer", "--problem", "q", "--problem-type", "code", "--ground-truth"]
    for refused in ("assert f(1) == 2", "42", "{}", "[]", '{"tests": [1]}'):
        assert run([*given, refused]) == 2
        assert '"entry_point": "f"' in "".join(capsys.readouterr())
    assert asked == []  # refused before a model is asked
    for right in ('{"tests": ["assert f(1) == 2"], "entry_point": "f"}', '["assert f(1) == 2"]'):
        assert run([*given, right]) == 0
        assert "reward (workflow): 1.00" in capsys.readouterr().out
    assert run([*given, '["assert f(1) == 3"]']) == 0
    assert "reward (workflow): 0.00" in capsys.readouterr().out
