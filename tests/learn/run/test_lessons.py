"""A supervised start on the policy's own successes and on recorded trajectories."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.core.errors import ConfigError, RunError, UserError
from midstream.core.types import Trajectory
from midstream.evaluate.runs import read_rows
from midstream.learn.config import TrainConfig
from midstream.learn.run.setup import TrainingContext, build
from midstream.learn.run.warm_start import check_warm_start, collect_lessons, lesson_batches
from midstream.record.exchange import export_to
from midstream.record.store import Store
from midstream.rewards import component


@component("letters_for_lessons")
def letters(answer: str | None) -> float:
    return sum(map(str.isalpha, answer or "")) / max(len(answer or ""), 1)


def config(tiny_path: Path, **warm_start: Any) -> dict[str, Any]:
    return {
        "policy": {"model": str(tiny_path), "tuning": "full", "dtype": "float32", "numerics": "exact"},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"letters_for_lessons": 1.0}, "success": "letters_for_lessons", "success_at": 0.6},
        "rollout": {"tasks_per_step": 1, "group_size": 2, "sampling": {"max_tokens": 4}},
        "algorithm": {"name": "reinforce", "kl": {"coef": 0.0}},
        "warm_start": {"examples": 4, "lr": 0.01, "batch_size": 4, **warm_start},
        "trainer": {"max_steps": 1, "eval_every": 0, "test_tasks": 8, "threads": 1, "deterministic": True},
    }


def context(tiny_path: Path, **warm_start: Any) -> TrainingContext:
    return build(TrainConfig.model_validate(config(tiny_path, **warm_start)))


def read(context: TrainingContext) -> list[Trajectory]:
    check_warm_start(context)
    return asyncio.run(collect_lessons(context))


@pytest.fixture
def successes(tiny_path: Path) -> list[Trajectory]:
    return read(context(tiny_path, source="successes"))


def test_own_successes_are_attempts_that_succeed(successes: list[Trajectory]) -> None:
    assert successes and all(one.reward is not None and one.reward >= 0.6 for one in successes)
    assert {one.task.split for one in successes} == {"train"} and len({one.task.id for one in successes}) <= 4


def test_the_policy_gets_better_by_imitating_its_successes(tiny_path: Path, tmp_path: Path) -> None:
    made = config(tiny_path, source="successes", examples=16, epochs=4)
    made["trainer"] |= {"run_dir": str(tmp_path / "run"), "test_tasks": 24}
    api.train(made, callbacks=[])
    rewards = {row["label"]: row["reward"] for row in read_rows(tmp_path / "run" / "evals.jsonl")}
    assert rewards["warm start"] > rewards["base"]
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["stage"] == "warm_start"]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_nothing_good_enough_is_no_start(tiny_path: Path) -> None:
    with pytest.raises(RunError, match=r"none of the 32 attempts .*highest reward"):
        read(context(tiny_path, source="successes", at_least=2.0))


def store_of(path: Path, trajectories: list[Trajectory]) -> Path:
    with Store(path) as store:
        for one in trajectories:
            store.trajectories.begin(one.uid, one.prompt_uid, one.task, channel="train")
            for step in one.steps:
                store.trajectories.append_sync(step, "train")
            asyncio.run(store.trajectories.finish(one))
    return path


def test_recorded_trajectories_give_the_same_sequences(
    tiny_path: Path, tmp_path: Path, successes: list[Trajectory]
) -> None:
    path = store_of(tmp_path / "own.sqlite", successes)
    with Store(path) as store:
        export_to(store, tmp_path / "own.jsonl")
    settings = context(tiny_path, source="successes").config.warm_start
    expected = sorted(map(str, *[list(lesson_batches(successes, settings, 0))[:1]]))
    for source in (path, tmp_path / "own.jsonl"):
        found = read(context(tiny_path, source=str(source), examples=100))
        assert [one.uid for one in found] == [one.uid for one in successes]
        assert sorted(map(str, list(lesson_batches(found, settings, 0))[:1])) == expected


def test_held_out_tasks_bad_rewards_and_other_roles_are_left_out(
    tiny_path: Path, tmp_path: Path, successes: list[Trajectory]
) -> None:
    first = successes[0]

    def like(uid: str, **changes: Any) -> Trajectory:
        own = {"trajectory_uid": uid, "role": changes.pop("role", "policy")}
        steps = tuple(replace(step, **own) for step in first.steps)
        return replace(first, uid=uid, prompt_uid=uid, **{"steps": steps, **changes})

    others = [
        like("held-out", task=replace(first.task, split="test")),
        like("poor", reward=0.1),
        like("judge", role="judge"),
    ]
    path = store_of(tmp_path / "mixed.sqlite", [*others, like("good")])
    assert [one.uid for one in read(context(tiny_path, source=str(path)))] == ["good"]
    only = store_of(tmp_path / "others.sqlite", others)
    with pytest.raises(ConfigError, match=r"no trajectory in .* roles recorded there: judge"):
        read(context(tiny_path, source=str(only)))


def test_reruns_interrupted_replies_and_what_curation_excluded_are_left_out(
    tiny_path: Path, tmp_path: Path, successes: list[Trajectory]
) -> None:
    first = successes[0]

    def like(uid: str, metadata: dict[str, Any] | None = None, **changed: Any) -> Trajectory:
        own = (replace(first.steps[0], trajectory_uid=uid), replace(first.steps[0], trajectory_uid=uid, step_index=1))
        steps = tuple(replace(step, **changed) for step in own)
        return replace(first, uid=uid, prompt_uid=uid, steps=steps, metadata=metadata or {})

    path = store_of(
        tmp_path / "own.sqlite",
        [
            like("rerun", {"rerun_of": "good", "without": "policy"}),
            like("cut", finish_reason="interrupted"),
            like("rejected"),
            like("excluded"),
            like("good"),
        ],
    )
    with Store(path) as store:
        store.annotations.curate("rejected", quality="reject")
        store.annotations.curate("excluded", trainable=False)
        store.annotations.curate("good", 0, trainable=False)
        export_to(store, tmp_path / "own.jsonl")
    for source in (path, tmp_path / "own.jsonl"):
        found = read(context(tiny_path, source=str(source)))
        assert [(one.uid, [step.trainable for step in one.steps]) for one in found] == [("good", [False, True])]


def test_a_role_that_is_not_trained_may_have_another_tokenizer(
    tiny_path: Path, tmp_path: Path, successes: list[Trajectory]
) -> None:
    first = successes[0]
    foreign = replace(first.steps[0], role="judge", step_index=1, response_ids=(100_000,), rollout_log_probs=(-1.0,))
    path = store_of(tmp_path / "own.sqlite", [replace(first, steps=(first.steps[0], foreign))])
    assert [step.trainable for step in read(context(tiny_path, source=str(path)))[0].steps] == [True, False]


def test_tokens_of_another_tokenizer_are_refused(tiny_path: Path, tmp_path: Path, successes: list[Trajectory]) -> None:
    first = successes[0]
    for uid, ids in (("unknown", (100_000, 5)), ("other", (50, 51))):
        steps = (replace(first.steps[0], response_ids=ids, rollout_log_probs=(-1.0, -1.0)),)
        path = store_of(tmp_path / f"{uid}.sqlite", [replace(first, steps=steps)])
        with pytest.raises(ConfigError, match="another tokenizer"):
            read(context(tiny_path, source=str(path)))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.sqlite"])
def test_a_file_that_is_not_there_is_found_before_training(tiny_path: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="missing"):
        check_warm_start(context(tiny_path, source=str(tmp_path / name)))
