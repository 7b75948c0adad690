"""Batches come in order, sampling runs ahead of learning by a bounded number of steps, and a resume repeats none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from midstream import api
from midstream.core.errors import ConfigError, TrainingError
from midstream.evaluate.runs import Row, read_rows
from midstream.learn.data.collect import Collected
from midstream.learn.run import producer
from midstream.learn.run.checkpoint import TrainState
from midstream.learn.run.producer import BatchProducer
from midstream.record.store import Store
from midstream.tasks.curriculum import Progress


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run of five steps of three tasks, whose collecting does nothing but note when it begins."""
    found = SimpleNamespace(
        config=SimpleNamespace(
            rollout=SimpleNamespace(steps_ahead=0, max_failed=None), trainer=SimpleNamespace(max_steps=5)
        ),
        decoder=SimpleNamespace(version=0),
        engine=SimpleNamespace(tokens_sampled=0, tokens_prefilled=0),
        begun=[],
    )

    async def collect(given: Any, store: Any, progress: Progress, replay: Any, step: int, version: int, source: Any):
        found.begun.append((step, version, progress.position))
        await asyncio.sleep(0)
        found.engine.tokens_sampled += 10 * step
        return Collected([], [], Progress(progress.position + 3))

    monkeypatch.setattr(producer, "collect", collect)
    monkeypatch.setattr(producer, "check_failures", lambda *given, **named: None)
    return found


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_sampling_is_ahead_of_learning_by_no_more_than_the_bound(context: Any, ahead: int) -> None:
    context.config.rollout.steps_ahead = ahead

    async def learn() -> list[tuple[int, int, int]]:
        batches = BatchProducer(context, None, TrainState(1, 3, 1, 0))  # type: ignore[arg-type]
        seen = []
        for step in range(2, 6):
            batch = await batches.next()
            for _ in range(20):  # whatever may begin begins
                await asyncio.sleep(0)
            assert max(begun for begun, _, _ in context.begun) == min(step + ahead, 5)
            seen.append((batch.step, context.decoder.version - batch.version, batch.tokens))
            context.decoder.version += 1
        return seen

    seen = asyncio.run(learn())
    assert [step for step, _, _ in seen] == [2, 3, 4, 5]
    assert [behind for _, behind, _ in seen] == [min(n, ahead) for n in range(4)]
    # Each batch goes on in the order of tasks where the one before it ended.
    assert [(step, position) for step, _, position in context.begun] == [(2, 3), (3, 6), (4, 9), (5, 12)]
    assert [tokens for _, _, tokens in seen] == [20, 30, 40, 50]


def test_an_error_in_a_later_batch_is_raised_when_its_step_comes_and_closing_ends_what_is_under_way(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.config.rollout.steps_ahead = 2
    ended = []

    async def collect(given: Any, store: Any, progress: Progress, replay: Any, step: int, *others: Any) -> Collected:
        if step == 2:
            raise TrainingError("no tasks")
        try:
            await asyncio.sleep(0 if step == 1 else 60)
        finally:
            ended.append(step)
        return Collected([], [], progress)

    monkeypatch.setattr(producer, "collect", collect)

    async def learn() -> None:
        batches = BatchProducer(context, None, TrainState(0, 0, 0, 0))  # type: ignore[arg-type]
        assert (await batches.next()).step == 1
        with pytest.raises(TrainingError, match="no tasks"):
            await batches.next()
        await batches.close()
        other = BatchProducer(context, None, TrainState(2, 0, 0, 0))  # type: ignore[arg-type]
        waiting = asyncio.create_task(other.next())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        await other.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(learn())
    assert ended == [1, 3]


def train(tiny_path: Path, run: Path, steps: int, **changed: Any) -> list[Row]:
    settings: dict[str, Any] = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"length": -1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 3, "sampling": {"max_tokens": 3}, "steps_ahead": 1},
        "algorithm": {"name": "rloo", "kl": {"coef": 0.1, "reference": "start"}},
        "optimizer": {"lr": 0.01},
        "trainer": {"eval_every": 0, "test_tasks": 0, "threads": 1, "run_dir": str(run), "minibatches": 2},
    }
    for section, values in changed.items():
        settings[section].update(values)
    settings["trainer"] |= {"max_steps": steps, "save_every": 1}
    resume = (run / "config.yaml").exists()
    api.train(settings, callbacks=(), resume=resume, force=resume)
    return read_rows(run / "metrics.jsonl")


def test_a_run_that_samples_a_step_ahead_learns_from_samples_of_bounded_age_and_resumes_with_the_next_tasks(
    tiny_path: Path, tmp_path: Path
) -> None:
    whole = train(tiny_path, tmp_path / "whole", 4)
    train(tiny_path, tmp_path / "cut", 2)
    cut = train(tiny_path, tmp_path / "cut", 4)
    # Two updates a step: the second step was begun before the first update. A resumed run begins with nothing ahead.
    assert [row["versions_behind"] for row in whole] == [0, 2, 2, 2]
    assert [row["versions_behind"] for row in cut] == [0, 2, 0, 2]
    for run in ("whole", "cut"):
        with Store(tmp_path / run / "store.sqlite", read_only=True) as store:
            found = list(store.trajectories.iterate(channel="train"))
        tasks: dict[int, set[str]] = {}
        for trajectory in found:
            step = int(trajectory.uid.split("-")[1])
            tasks.setdefault(step, set()).add(trajectory.task.id)
            assert all(0 <= 2 * (step - 1) - sampled.policy_version <= 2 for sampled in trajectory.steps)
        assert {step: len(ids) for step, ids in tasks.items()} == {1: 2, 2: 2, 3: 2, 4: 2}
        assert len(set.union(*tasks.values())) == 8


@pytest.mark.parametrize(
    "changed", [{"trainer": {"deterministic": True}}, {"rollout": {"steps_ahead": 1, "source": {"store": "x.sqlite"}}}]
)
def test_sampling_ahead_is_refused_where_it_cannot_be(tiny_path: Path, tmp_path: Path, changed: Any) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.steps_ahead cannot be combined with"):
        train(tiny_path, tmp_path / "run", 1, **changed)
