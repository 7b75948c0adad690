"""Scores a trajectory when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from midstream.core.types import Trajectory
from midstream.gateway.http.errors import ApiError
from midstream.rewards import RewardFunction


async def scored(
    trajectory: Trajectory,
    reward_function: RewardFunction | None,
    *,
    reward: float | None,
    rewards: Mapping[str, float],
    answer: str | None,
    error: str,
) -> Trajectory:
    """Return `trajectory` with its answer and reward.

    The client gives a total (`reward`, else the sum of its steps' rewards) and components (`rewards`). If there is a
    `reward_function`, it decides the reward; the given values are kept in `metadata["given"]`, which the component
    `given` reads, and the given total in `rewards["given"]`. Otherwise the given total is the reward. Components are
    not added up: without a total the trainer scores the trajectory. Raises `ApiError` 400 for a reward that is not
    finite.
    """
    by_step = [step.reward for step in trajectory.steps if step.reward is not None]
    if reward is None and by_step:
        reward = sum(by_step)
    if reward is not None and not math.isfinite(reward):
        raise ApiError(400, f"the rewards of trajectory '{trajectory.uid}' add up to {reward}", param="reward")
    total = {} if reward is None else {"given": reward}
    given = {**rewards, **total}
    ended = replace(
        trajectory,
        answer=trajectory.answer if answer is None else answer,
        error=error,
        metadata={**trajectory.metadata, **({"given": given} if given else {})},
        rewards=given,
        reward=reward,
    )
    if reward_function is None:
        return ended
    graded = await reward_function.score(ended)
    return replace(graded, rewards={**total, **graded.rewards})
