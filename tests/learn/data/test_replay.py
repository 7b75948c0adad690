"""A buffer of groups: who comes in, who leaves, who is drawn, and that what comes back is what was sampled."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.learn.data.replay import ReplayEntry, add_groups, choose_entries, load_groups
from midstream.learn.rollout_config import ReplayConfig, TrainRolloutConfig
from midstream.record.store import Store


def trajectory(uid: str, group: str, reward: float | None, versions: tuple[int, ...] = (3,)) -> Trajectory:
    steps = tuple(
        Step(
            prompt_ids=(1, 2),
            response_ids=(5, 6),
            rollout_log_probs=(-0.1, -1.7),
            trajectory_uid=uid,
            prompt_uid=group,
            step_index=index,
            policy_version=version,
            trainable=version >= 0,
        )
        for index, version in enumerate(versions)
    )
    return Trajectory(uid=uid, prompt_uid=group, task=Task(id="t", prompt="?"), steps=steps, reward=reward)


def holding(capacity: int, **rules: Any) -> TrainRolloutConfig:
    return TrainRolloutConfig(replay=ReplayConfig(capacity=capacity), **rules)


def buffer_of(*priorities: float) -> list[ReplayEntry]:
    return [ReplayEntry(f"g{n}", (f"g{n}-0",), n, priority) for n, priority in enumerate(priorities)]


def drawn(buffer: list[ReplayEntry], count: int, steps: int = 2000, **config: Any) -> Counter[str]:
    chosen = Counter[str]()
    for step in range(steps):
        found = [entry.prompt_uid for entry in choose_entries(buffer, ReplayConfig(**config), count, seed=1, step=step)]
        assert len(set(found)) == len(found) <= count
        chosen.update(found)
    return chosen


def test_a_group_comes_in_with_its_oldest_version_and_the_variance_of_its_rewards() -> None:
    group = [
        trajectory("a", "g", 1.0, (5, 6)),
        trajectory("b", "g", 0.0, (-1, 4)),  # its first step is not trained
        trajectory("c", "g", None, (7,)),
    ]
    (entry,) = add_groups((), [group], {"g": 0.5, "h": 1.0}, holding(4))
    assert entry == ReplayEntry("g", ("a", "b", "c"), 4, 0.25, 0.5)


def test_what_cannot_be_learned_from_stays_out_and_the_oldest_make_room() -> None:
    groups = [[trajectory("u", "unscored", None)], [trajectory("s", "silent", 1.0, ())]]
    assert add_groups((), groups, {}, holding(4)) == ()
    fresh = [[trajectory(f"{n}", f"new{n}", 1.0)] for n in range(2)]
    assert [entry.prompt_uid for entry in add_groups(buffer_of(0, 0, 0), fresh, {}, holding(4))] == [
        "g1",
        "g2",
        "new0",
        "new1",
    ]


def test_what_does_not_count_gives_a_group_no_priority() -> None:
    cut = trajectory("c", "g", 0.0)
    cut = replace(cut, steps=tuple(replace(step, finish_reason=FinishReason.LENGTH) for step in cut.steps))
    group = [trajectory("a", "g", 1.0), trajectory("b", "g", 1.0), cut]
    priorities = [add_groups((), [group], {}, holding(4, truncated=rule))[0].priority for rule in ("keep", "drop")]
    assert priorities == [pytest.approx(2 / 9), 0.0]


def test_recent_takes_the_last_that_came_in() -> None:
    config = ReplayConfig(sampling="recent")
    assert [entry.prompt_uid for entry in choose_entries(buffer_of(1, 0, 0), config, 2, seed=0, step=1)] == ["g1", "g2"]
    assert choose_entries(buffer_of(1, 1), config, 0, seed=0, step=1) == []
    assert len(choose_entries(buffer_of(1, 1), config, 5, seed=0, step=1)) == 2


def test_uniform_draws_each_as_often() -> None:
    chosen = drawn(buffer_of(0.0, 0.1, 0.25, 9.0), 2, sampling="uniform")
    assert all(count == pytest.approx(1000, abs=90) for count in chosen.values()) and len(chosen) == 4


def test_prioritised_draws_in_proportion_to_the_variance_and_never_what_has_none() -> None:
    chosen = drawn(buffer_of(0.0, 0.1, 0.2, 0.7), 1, sampling="prioritised")
    assert chosen["g0"] == 0
    for name, share in (("g1", 0.1), ("g2", 0.2), ("g3", 0.7)):
        assert chosen[name] / 2000 == pytest.approx(share, abs=0.035)
    assert drawn(buffer_of(0.0, 0.0), 2, steps=5, sampling="prioritised") == Counter()


def test_a_draw_depends_on_seed_step_and_what_is_in_the_buffer() -> None:
    buffer, config = buffer_of(*[1.0] * 50), ReplayConfig()
    once = choose_entries(buffer, config, 3, seed=1, step=1)
    assert choose_entries(buffer[::-1], config, 3, seed=1, step=1) == once
    assert once not in (
        choose_entries(buffer, config, 3, seed=2, step=1),
        choose_entries(buffer, config, 3, seed=1, step=2),
    )


def test_a_group_comes_back_as_it_was_sampled(tmp_path: Path) -> None:
    group = [trajectory("a", "g", 0.1 + 0.2), trajectory("b", "g", None, (1, 2))]
    with Store(tmp_path / "store.sqlite") as store:
        for member in group:
            store.trajectories.begin(member.uid, "g", member.task, "train", 1)
            asyncio.run(store.trajectories.finish(member))
        buffer = add_groups((), [group], {}, holding(3))
        assert load_groups(store, buffer) == [group]


@pytest.mark.parametrize(
    ("share", "tasks", "expected"), [(0.25, 8, 2), (0.25, 6, 2), (0.01, 6, 1), (0.99, 6, 5), (0.5, 2, 1)]
)
def test_the_share_is_whole_groups_and_leaves_one_to_sample(share: float, tasks: int, expected: int) -> None:
    assert ReplayConfig(capacity=9, share=share).groups(tasks) == expected
    assert ReplayConfig(share=share).groups(tasks) == 0
    with pytest.raises(ValueError, match=r"rollout\.replay needs"):
        TrainRolloutConfig(tasks_per_step=1, replay=ReplayConfig(capacity=1))
