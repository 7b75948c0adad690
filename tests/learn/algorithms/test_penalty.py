"""The KL as a part of the reward, and a coefficient that follows it."""

from __future__ import annotations

import pytest

from midstream.core.types import Step, Task, Trajectory
from midstream.learn.algorithms.base import KLConfig
from midstream.learn.algorithms.outcome import PolicyOutputs
from midstream.learn.algorithms.penalty import penalise_rewards


def step(index: int, log_probs: tuple[float, ...], reward: float | None = None, trainable: bool = True) -> Step:
    return Step(
        prompt_ids=(1, index),
        response_ids=tuple(range(len(log_probs))),
        rollout_log_probs=log_probs,
        step_index=index,
        reward=reward,
        role="planner",
        trainable=trainable,
    )


def test_a_trajectory_pays_for_what_its_tokens_drifted() -> None:
    steps = (step(0, (-1.0, -2.0), 0.5), step(1, (-1.0,), 0.25, trainable=False), step(2, (-3.0,), None))
    drifted = Trajectory(uid="a", prompt_uid="p", task=Task(id="t", prompt="?"), steps=steps, reward=0.75)
    unscored = Trajectory(uid="b", prompt_uid="p", task=Task(id="t", prompt="?"), steps=(step(0, (-1.0,)),))
    outputs = {("a", 0): (-1.5, -2.0), ("a", 2): (-2.0,), ("b", 0): (-1.0,)}
    read = {place: PolicyOutputs(reference=values) for place, values in outputs.items()}
    ((found, other),), by_token = penalise_rewards([[drifted, unscored]], read, coef=0.5)
    # log pi_old - log pi_ref: 0.5 and 0 in the first step, -1 in the third.
    assert [s.reward for s in found.steps] == [0.5 - 0.25, 0.25, 0.5]
    assert found.reward == pytest.approx(0.75 - 0.25 + 0.5)
    assert sum(s.reward or 0.0 for s in found.steps) == pytest.approx(found.reward)
    assert by_token == pytest.approx((0.5 - 1.0 + 0.0) / 4)
    assert other.reward is None


def test_nothing_trainable_pays_nothing() -> None:
    still = Trajectory(uid="a", prompt_uid="p", task=Task(id="t", prompt="?"), reward=1.0)
    assert penalise_rewards([[still]], {}, 1.0) == ([[still]], 0.0)


def test_the_coefficient_follows_its_target_by_a_fifth_at_most() -> None:
    kl = KLConfig(coef=0.1, target=0.02, horizon=100)
    assert kl.adapted_coef(0.1, 0.02, 50) == pytest.approx(0.1)
    assert kl.adapted_coef(0.1, 0.022, 50) == pytest.approx(0.1 * 1.05)
    assert kl.adapted_coef(0.1, 5.0, 50) == pytest.approx(0.1 * 1.1)
    assert kl.adapted_coef(0.1, 0.0, 50) == pytest.approx(0.1 * 0.9)
    assert KLConfig(coef=0.1).adapted_coef(0.1, 5.0, 50) == 0.1
