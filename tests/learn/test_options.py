"""Settings of the loop at work in a whole run: the KL in the reward, a coefficient that follows, groups dropped, groups
learned from again, rewards normalised, tasks by difficulty."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.evaluate.runs import Row, read_rows
from midstream.learn.run import step
from midstream.learn.run.checkpoint import read_state
from midstream.record.store import Store
from midstream.rewards import component


@component("letters_for_options")
def letters(answer: str | None) -> float:
    """Share of letters in the answer."""
    return sum(c.isalpha() for c in answer or "") / max(len(answer or ""), 1)


def rows_of(tiny_path: Path, run: Path, steps: int, resume: bool = False, **changed: Any) -> list[Row]:
    settings: dict[str, Any] = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 4}},
        "tasks": {"sources": [{"type": "direct"}], **changed.get("tasks", {})},
        "reward": {
            "components": changed.get("components", {"letters_for_options": 1.0}),
            **changed.get("reward", {}),
        },
        "rollout": {"tasks_per_step": 2, "group_size": 3, "sampling": {"max_tokens": 3}, **changed.get("rollout", {})},
        "algorithm": {"name": "rloo", **changed.get("algorithm", {})},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_steps": steps, "eval_every": 0, "test_tasks": 0, "threads": 1, "run_dir": str(run)}
        | changed.get("trainer", {}),
    }
    api.train(settings, callbacks=(), resume=resume, force=resume)
    return read_rows(run / "metrics.jsonl")


def test_everything_that_runs_the_model_runs_in_the_compute_thread(tiny_path, tmp_path: Path, monkeypatch) -> None:
    """Two threads that use OpenMP slow each other down, and no result would show it."""
    from midstream.engines.torch.decoder import Decoder

    seen: set[str] = set()
    forward = Decoder.forward

    def noted(self: Decoder, *given: Any, **named: Any) -> Any:
        seen.add(threading.current_thread().name)
        return forward(self, *given, **named)

    monkeypatch.setattr(Decoder, "forward", noted)
    kl = {"coef": 0.1, "placement": "reward", "reference": "start"}
    rows_of(tiny_path, tmp_path / "run", 2, algorithm={"kl": kl}, trainer={"eval_every": 1, "val_tasks": 2})
    api.ask("Who?", run=tmp_path / "run")
    assert seen == {"compute_0"}


@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_a_coefficient_that_follows_is_gone_on_with_after_a_resume(tiny_path, tmp_path: Path, placement: str) -> None:
    kl = {"coef": 0.1, "placement": placement, "target": 1e-6, "horizon": 6, "estimator": "k3"}
    whole = rows_of(tiny_path, tmp_path / "whole", 3, algorithm={"kl": kl})
    assert whole[0]["kl"] == pytest.approx(0.0, abs=1e-6) and abs(whole[2]["kl"]) > 1e-6
    moved = [row["kl_coef"] for row in whole]
    # Below the target it falls by a fifth over six trajectories, above it rises as fast.
    assert moved[0] == 0.1 and moved[1] == pytest.approx(0.08, rel=0.02) and moved[2] != moved[1]
    rows_of(tiny_path, tmp_path / "cut", 2, algorithm={"kl": kl})
    cut = rows_of(tiny_path, tmp_path / "cut", 3, resume=True, algorithm={"kl": kl})
    assert [row["kl_coef"] for row in cut] == moved
    assert cut[2]["loss"] == pytest.approx(whole[2]["loss"], rel=1e-5)


def test_groups_without_a_difference_are_replaced_and_counted(tiny_path, tmp_path: Path) -> None:
    # One token each, and a reward by length: no group ever differs, so every round is used up.
    flat = {"backfill": 2, "sampling": {"max_tokens": 1}}
    (row,) = rows_of(tiny_path, tmp_path / "flat", 1, rollout=flat, components={"length": -1.0})
    assert row["dropped_groups"] == 6 and row["groups"] == 0 and row["loss_tokens"] == 0


def test_truncated_trajectories_carry_no_loss_when_masked(tiny_path, tmp_path: Path) -> None:
    (kept,) = rows_of(tiny_path, tmp_path / "kept", 1, algorithm={"name": "reinforce", "baseline": "none"})
    masked = {"truncated": "mask"}
    (row,) = rows_of(
        tiny_path, tmp_path / "masked", 1, rollout=masked, algorithm={"name": "reinforce", "baseline": "none"}
    )
    assert kept["truncated"] > 0.5 and row["loss_tokens"] < kept["loss_tokens"] / 2


def test_a_policy_is_taught_by_the_checkpoint_of_another_run(tiny_path, tmp_path: Path) -> None:
    rows_of(tiny_path, tmp_path / "teacher", 2)
    teacher = str(tmp_path / "teacher" / "checkpoints" / "step-000002")
    settings = {"name": "distill", "kl": {"coef": 0.0, "reference": teacher, "measure_every": 1}}
    rows = rows_of(tiny_path, tmp_path / "pupil", 6, algorithm=settings)
    # The pupil begins where the teacher began, and comes nearer to it.
    assert rows[0]["kl"] > 1e-3 and rows[-1]["kl"] < rows[0]["kl"] / 2


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "dpo", "kl": {"coef": 0.0, "reference": "start"}},
        {"name": "imitate", "at_least": 0.5},
        {"name": "role_baseline", "credit": "trajectory"},
        {"name": "rloo", "correction": {"level": "sequence", "rule": "band", "low": 0.5, "high": 2.0}},
        {"name": "rloo", "top_entropy": 0.5},
    ],
    ids=str,
)
def test_what_an_algorithm_reads_and_remembers_is_gone_on_with(tiny_path, tmp_path: Path, algorithm) -> None:
    whole = rows_of(tiny_path, tmp_path / "whole", 3, algorithm=algorithm)
    rows_of(tiny_path, tmp_path / "cut", 2, algorithm=algorithm)
    cut = rows_of(tiny_path, tmp_path / "cut", 3, resume=True, algorithm=algorithm)
    assert cut[2]["loss"] == pytest.approx(whole[2]["loss"], rel=1e-5) and whole[2]["loss"] != 0
    assert cut[2]["grad_norm"] == pytest.approx(whole[2]["grad_norm"], rel=1e-4) and whole[2]["grad_norm"] > 0


def test_a_running_baseline_runs_on_from_step_to_step(tiny_path, tmp_path: Path) -> None:
    algorithm = {"name": "role_baseline", "credit": "trajectory", "decay": 0.5}
    rows = rows_of(tiny_path, tmp_path / "run", 3, algorithm=algorithm)
    first, second, third = (row["reward"] for row in rows)
    kept = read_state(tmp_path / "run" / "checkpoints" / "step-000003").memory
    assert list(kept.values()) == pytest.approx([0.25 * first + 0.25 * second + 0.5 * third])
    assert first != pytest.approx(second, abs=1e-4)


def test_groups_of_earlier_steps_are_learned_from_again_beside_fresh_ones(tiny_path, tmp_path: Path) -> None:
    replay = {"replay": {"capacity": 3, "share": 0.5, "sampling": "recent"}, "tasks_per_step": 4}
    rows = rows_of(tiny_path, tmp_path / "run", 3, rollout=replay)
    # The first step has nothing to replay, so the first update has fresh samples only: its ratio is 1.
    assert [row["replayed_groups"] for row in rows] == [0, 2, 2]
    assert [row["groups"] for row in rows] == [4, 4, 4] and [row["replay_size"] for row in rows] == [3, 3, 3]
    assert rows[0]["max:log_ratio"] < 1e-4
    assert all(row["max:log_ratio"] > 1e-3 for row in rows[1:])
    with Store(tmp_path / "run" / "store.sqlite") as store:
        assert [store.trajectories.count(channel="train", train_step=step) for step in (1, 2, 3)] == [12, 6, 6]


def test_what_an_older_policy_sampled_is_not_learned_from_and_counted(tiny_path, tmp_path: Path) -> None:
    limited = {"max_staleness": 0, "tasks_per_step": 4, "replay": {"capacity": 4, "share": 0.25}}
    rows = rows_of(tiny_path, tmp_path / "run", 2, rollout=limited, trainer={"minibatches": 2})
    for row in rows:  # the second half of a step's updates comes a version too late
        assert row["policy_version"] - rows[0]["policy_version"] == row["step"] - 1
        assert row["stale_turns"] == 6 and row["loss_tokens"] <= 18
    assert [row["stale_groups"] for row in rows] == [0, 4] and rows[1]["replayed_groups"] == 0


@pytest.mark.parametrize("normalize", ["group", "batch", "running"])
def test_what_is_learned_from_is_normalised_and_what_is_logged_is_not(
    tiny_path, tmp_path: Path, monkeypatch, normalize: str
) -> None:
    seen: list[list[float]] = []
    make = step.make_batch

    def noted(groups: Any, *given: Any, **named: Any) -> Any:
        seen.append([t.reward for group in groups for t in group])
        return make(groups, *given, **named)

    monkeypatch.setattr(step, "make_batch", noted)
    plain = rows_of(tiny_path, tmp_path / "plain", 2)
    rows = rows_of(tiny_path, tmp_path / "run", 2, reward={"normalize": normalize, "clip": [0.2, 0.9]})
    raw, scaled = seen[0], seen[2]
    assert rows[0]["reward"] == pytest.approx(sum(min(max(r, 0.2), 0.9) for r in raw) / 6)
    assert rows[0]["rewards/letters_for_options"] == plain[0]["rewards/letters_for_options"]
    assert sum(scaled) == pytest.approx(0.0, abs=1e-6) and sum(r**2 for r in scaled) == pytest.approx(6, rel=0.01)
    assert (abs(sum(seen[3])) < 1e-6) == (normalize != "running")


def test_tasks_come_again_by_how_well_they_went(tiny_path, tmp_path: Path) -> None:
    pools = {"name": "pools", "hard": 0.0, "normal": 0.0, "easy": 0.0, "solved": 1.0}
    won = {"success": "letters_for_options", "success_at": 0.0}
    rows = rows_of(tiny_path, tmp_path / "run", 3, tasks={"curriculum": pools}, reward=won)
    assert [row["pool/solved"] for row in rows] == [2, 2, 2]
    lost = rows_of(tiny_path, tmp_path / "lost", 3, tasks={"curriculum": pools}, reward=won | {"success_at": 2.0})
    assert [row["pool/hard"] for row in lost] == [2, 4, 6]
