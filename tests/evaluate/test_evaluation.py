"""Evaluating and asking a trained run: weights of its checkpoint, results equal to the trainer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midstream import api, cli
from midstream.core.types import Status, Task, Trajectory
from midstream.evaluate.runs import read_rows
from midstream.rewards.summary import failure_reasons, summarise


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    """A run in the folder `runs`, trained with a few large steps so that its responses change."""
    root = tmp_path_factory.mktemp("evaluated")
    settings: dict[str, Any] = {
        "name": "first",
        "policy": {"model": str(tiny_path), "tuning": "full", "dtype": "float32"},
        "tasks": {"sources": [{"type": "calculate"}, {"type": "direct"}]},
        "flow": {
            "name": "agentflow",
            "tools": ["calculator"],
            "roles": {role: {"engine": "rules"} for role in ("analysis", "executor", "verifier")},
            "settings": {"notation": "compact", "fields": [], "max_turns": 2},
        },
        "reward": {"components": {"length": -1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 5}},
        "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
        "optimizer": {"lr": 0.05},
        "warm_start": {"examples": 4, "epochs": 1, "batch_size": 2, "lr": 0.02},
        "trainer": {
            "max_steps": 2,
            "eval_every": 0,
            "test_tasks": 6,
            "threads": 1,
            "run_dir": str(root / "runs/first"),
        },
    }
    return api.train(settings, callbacks=()).run_dir


def test_a_run_and_its_checkpoint_give_the_trainers_own_final_numbers(trained: Path) -> None:
    final = next(row for row in read_rows(trained / "evals.jsonl") if row["label"] == "final")
    base = {row["question"]: row for row in read_rows(trained / "samples.jsonl") if row["label"] == "base"}
    after = {row["question"]: row for row in read_rows(trained / "samples.jsonl") if row["label"] == "final"}
    assert base.keys() == after.keys() and any(base[q]["turns"] != after[q]["turns"] for q in base)
    by_run = api.evaluate(run=trained, n=6)
    by_checkpoint = api.evaluate(checkpoint=trained / "checkpoints" / "step-000002", n=6)
    for row in (by_run, by_checkpoint):
        assert {key: row[key] for key in ("n", "success", "low", "high", "by_kind", "reward", "turns")} == {
            key: final[key] for key in ("n", "success", "low", "high", "by_kind", "reward", "turns")
        }
        texts = {sample["question"]: [turn["text"] for turn in sample["turns"]] for sample in row["samples"]}
        assert all(texts[question] == [turn["text"] for turn in after[question]["turns"]] for question in after)
        assert row["label"] == "first, step 2"


def test_evaluating_writes_only_the_output_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    tasks = tmp_path / "mine.jsonl"
    tasks.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": n + 1}) + "\n" for n in range(7)))
    arguments = ["eval", "--run", "first", "--runs-dir", str(trained.parent), "--tasks", str(tasks)]
    assert cli.run([*arguments, "--out", "result.json"]) == 0
    printed = capsys.readouterr().out
    assert "first, step 2  test   7" in printed and "tokens/s" in printed
    row = json.loads((tmp_path / "result.json").read_text())
    assert row["n"] == 7 and len(row["samples"]) == 7 and row["by_kind"].keys() == {"mine"}
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "result.json"]


def test_another_flow_and_an_override_are_used(trained: Path) -> None:
    row = api.evaluate(run=trained, tasks="direct", n=2, flow="single_step_single_turn_agent")
    assert [[turn["role"] for turn in sample["turns"]] for sample in row["samples"]] == [["policy"], ["policy"]]
    row = api.evaluate(run=trained, n=2, overrides=["rollout.sampling.max_tokens=1"])
    assert all(turn["tokens"] == 1 for sample in row["samples"] for turn in sample["turns"])


def test_a_model_without_flow_answers_with_one_response(tiny_path: Path) -> None:
    row = api.evaluate(model=str(tiny_path), tasks="direct", n=2, overrides=["rollout.sampling.max_tokens=3"])
    assert row["n"] == 2 and row["label"] == str(tiny_path) and row["tokens"] <= 6


def test_progress_is_reported_until_all_attempts_are_done(trained: Path) -> None:
    reports: list[tuple[int, int, float]] = []
    api.evaluate(run=trained, n=3, progress=lambda *progress: reports.append(progress))
    assert [done for done, _, _ in reports][-1] == 3 and all(of == 3 for _, of, _ in reports)
    assert reports[-1][2] > 0


def test_ask_returns_the_steps_of_each_module(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectory = api.ask("What is 2 + 3?", runs_dir=trained.parent)
    assert trajectory.status is Status.COMPLETED and trajectory.task.question == "What is 2 + 3?"
    assert {step.role for step in trajectory.steps} == {"planner", "generator"}
    assert cli.run(["ask", "What is 2 + 3?", "--runs-dir", str(trained.parent)]) == 0
    printed = capsys.readouterr().out
    order = ["What is 2 + 3?", "planner", "tokens", "executor", "verifier", "generator", "answer"]
    positions = [printed.index(text) for text in order]
    assert positions == sorted(positions)


def test_ask_does_not_need_the_tasks_a_run_was_trained_on(trained: Path, tmp_path: Path) -> None:
    config = (trained / "checkpoints" / "step-000002" / "config.yaml").read_text()
    moved = tmp_path / "agent.yaml"
    moved.write_text(config.replace("type: calculate", "type: /gone/tasks.jsonl"))
    assert api.ask("What is 2 + 3?", config=moved).status is Status.COMPLETED


def test_failed_attempts_are_grouped_by_reason() -> None:
    def failed(name: str, error: str) -> Trajectory:
        return Trajectory(uid=name, prompt_uid=name, task=Task(id=name, prompt="?"), status=Status.FAILED, error=error)

    done = Trajectory(uid="ok", prompt_uid="ok", task=Task(id="ok", prompt="?"))
    found = failure_reasons([done, failed("a", "boom"), failed("b", "5000 tokens"), failed("c", "6000 tokens")])
    assert found == [
        {"reason": "5000 tokens", "count": 2, "task": "b"},
        {"reason": "boom", "count": 1, "task": "a"},
    ]


def test_ask_ignores_the_runs_handling_of_failed_attempts(trained: Path, tmp_path: Path) -> None:
    config = (trained / "checkpoints" / "step-000002" / "config.yaml").read_text()
    scored = tmp_path / "agent.yaml"
    scored.write_text(config.replace("failed: mask", "failed: score").replace("failed: null", "failed: -1.0"))
    assert "failed: score" in scored.read_text()
    assert api.ask("What is 2 + 3?", config=scored).status is Status.COMPLETED


def test_an_unbounded_set_is_evaluated_on_trainer_test_tasks(trained: Path) -> None:
    assert api.evaluate(run=trained, tasks="calculate")["n"] == 6


def test_a_row_has_a_confidence_interval_of_the_reward() -> None:
    def worth(reward: float | None) -> Trajectory:
        return Trajectory(uid="u", prompt_uid="u", task=Task(id="t", prompt="?"), reward=reward)

    row = summarise([worth(1.0), worth(0.0), worth(1.0), worth(0.0), worth(None)], lambda t: t.reward == 1.0)
    assert row["reward"] == 0.5 and 0.0 <= row["reward_low"] < 0.5 < row["reward_high"] <= 1.0
    assert "reward_low" not in summarise([worth(1.0), worth(None)], lambda t: True)
