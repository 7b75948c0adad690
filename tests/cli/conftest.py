"""A run directory whose store contains two trajectories."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from midstream.core.types import Step, Task, ToolCall, Trajectory
from midstream.record.store import Store


@pytest.fixture
def run_files(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    info = {"name": "first", "created": "2026-01-02T03:04:05", "status": "finished", "model": "tiny", "seed": 3}
    (path / "run.json").write_text(json.dumps(info))
    rows = [{"stage": "rl", "step": step, "reward": step / 4, "success": 0.5, "time_s": 2.0} for step in (1, 2)]
    _write(path / "metrics.jsonl", rows)
    base = {"label": "base", "step": 0, "split": "test", "n": 60, "success": 1 / 30, "low": 0.009, "high": 0.114}
    final = {"label": "final", "step": 2, "split": "test", "n": 60, "success": 0.9, "low": 0.7985, "high": 0.9534}
    _write(path / "evals.jsonl", [base, final])
    turn = {"role": "planner", "text": "go", "tool": "calculator", "result": "4", "ok": True}
    sample = {"kind": "sum", "question": "What is [bold]2 + 2?", "turns": [turn]}
    _write(
        path / "samples.jsonl", [{**sample, "label": label, "success": label == "final"} for label in ("base", "final")]
    )
    with Store(path / "store.sqlite") as store:
        for uid in ("one-1", "two-2"):
            asyncio.run(store.trajectories.finish(_trajectory(uid)))
    return path


def _trajectory(uid: str) -> Trajectory:
    def step(index: int, role: str, text: str) -> Step:
        return Step(
            prompt_ids=(1, 2, 3),
            response_ids=(5, 6),
            rollout_log_probs=(-0.5, -0.25),
            trajectory_uid=uid,
            prompt_uid="p",
            step_index=index,
            role=role,
            text=text,
            trainable=True,
        )

    call = ToolCall(tool="calculator", arguments={"expression": "2 + 2"}, ok=True, result="4", step_index=0)
    return Trajectory(
        uid=uid,
        prompt_uid="p",
        task=Task(id="sum-1", prompt="What is [bold]2 + 2?", answer="4", kind="sum"),
        steps=(step(0, "planner", "<calculator>2 + 2</calculator>"), step(1, "generator", "4")),
        tool_calls=(call,),
        answer="4",
        turns=2,
        rewards={"answer": 1.0, "cost": None},
        reward=1.0,
    )


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
