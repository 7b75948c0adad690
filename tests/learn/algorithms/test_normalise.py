"""Normalised rewards: the formula, over whom, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.errors import TrainingError
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.learn.algorithms.normalise import Moments, normalise_rewards

numbers = st.floats(-1e3, 1e3)


def group_of(name: str, *rewards: float | None, parts: tuple[float, ...] = ()) -> list[Trajectory]:
    steps = tuple(
        Step(prompt_ids=(1,), response_ids=(2,), step_index=index, reward=part) for index, part in enumerate(parts)
    )
    return [
        Trajectory(uid=f"{name}{n}", prompt_uid=name, task=Task(id="t", prompt="?"), reward=reward, steps=steps)
        for n, reward in enumerate(rewards)
    ]


def is_scored(trajectory: Trajectory) -> bool:
    return trajectory.reward is not None and trajectory.status is Status.COMPLETED


def rewards(groups: list[list[Trajectory]], how, so_far: Moments | None = None) -> list[list[float | None]]:
    found, _ = normalise_rewards(groups, {}, how, is_scored, so_far or Moments())
    return [[trajectory.reward for trajectory in group] for group in found]


@given(st.lists(st.lists(numbers, max_size=8), max_size=4))
def test_running_moments_are_those_of_all_numbers_so_far(batches: list[list[float]]) -> None:
    moments = Moments()
    for batch in batches:
        moments = moments.updated(batch)
    everything = [value for batch in batches for value in batch]
    assert moments.count == len(everything)
    if everything:
        assert moments.mean == pytest.approx(np.mean(everything), abs=1e-6)
        assert math.sqrt(moments.squares / moments.count) == pytest.approx(np.std(everything), abs=1e-6)


@pytest.mark.parametrize("scope", ["group", "batch", "running"])
def test_a_reward_is_its_distance_to_the_mean_in_standard_deviations(scope) -> None:
    groups = [group_of("a", 1.0, 0.0, 0.0, 0.0), group_of("b", 3.0, 2.0)]
    so_far = [5.0, 1.0, 0.0, 0.0, 0.0, 3.0, 2.0]
    over = {"group": [[1.0, 0, 0, 0], [3.0, 2.0]], "batch": [[1.0, 0, 0, 0, 3, 2]] * 2, "running": [so_far] * 2}[scope]
    for group, own, members in zip(rewards(groups, scope, Moments().updated(so_far)), over, groups, strict=True):
        # reward_norm = (reward - reward_mean) / (reward_std + 1e-8), the formula of seed 002, with numpy's std.
        expected = [(t.reward - np.mean(own)) / (np.std(own) + 1e-8) for t in members if t.reward is not None]
        assert group == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scope", ["group", "batch", "running"])
def test_equal_rewards_become_zero_and_nothing_is_blown_up(scope) -> None:
    third = 1 / 3
    so_far = Moments().updated([third] * 6)
    assert rewards([group_of("a", *[third] * 3), group_of("b", *[third] * 3)], scope, so_far) == [[0.0] * 3] * 2
    _, greedy = normalise_rewards(
        [group_of("a", 0.0, 0.0)], {"a": 1.0}, scope, is_scored, Moments().updated([0.0, 0.0])
    )
    assert greedy == {"a": 1.0}


def test_none_changes_nothing() -> None:
    groups = [group_of("a", 1.0, None, parts=(0.5,))]
    assert normalise_rewards(groups, {"a": 2.0}, "none", is_scored, Moments()) == (groups, {"a": 2.0})


def test_who_does_not_count_changes_no_mean() -> None:
    group = group_of("a", 1.0, 3.0, 100.0, None)
    group[2] = replace(group[2], status=Status.FAILED)
    assert rewards([group], "group")[0][:2] == pytest.approx([-1.0, 1.0])
    assert rewards([group], "batch")[0][3] is None


def test_parts_on_steps_add_up_to_the_reward_and_a_greedy_attempt_is_measured_alike() -> None:
    group = group_of("a", 2.0, parts=(0.5, 1.5)) + group_of("a", 0.0, parts=(0.0, 0.0))
    ((won, lost),), greedy = normalise_rewards([group], {"a": 1.5, "elsewhere": 7.0}, "group", is_scored, Moments())
    assert [step.reward for step in won.steps] == pytest.approx([0.5, 0.5])  # (2 - 1) / 1, of which 0.5 came early
    assert [step.reward for step in lost.steps] == pytest.approx([0.0, -1.0])
    assert greedy == pytest.approx({"a": 0.5})


@pytest.mark.parametrize("scope", ["none", "group", "batch", "running"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_named_before_it_spoils_the_others(scope, bad: float) -> None:
    with pytest.raises(TrainingError, match="'a1'"):
        rewards([group_of("a", 1.0, bad)], scope)
