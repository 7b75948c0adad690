"""What a trajectory ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from midstream.core.types import Trajectory
from midstream.gateway.errors import ApiError
from midstream.rewards import RewardFunction


async def scored(
    trajectory: Trajectory,
    grade: RewardFunction | None,
    *,
    reward: float | None,
    rewards: Mapping[str, float],
    answer: str | None,
    error: str,
) -> Trajectory:
    """`trajectory` with what its agent said of it. Its reward is the one given, or the sum of its steps' own, or what
    `grade` says; without any, the trainer scores it. Raises `ApiError` 400 for one that is no number."""
    by_step = [step.reward for step in trajectory.steps if step.reward is not None]
    if reward is None and by_step:
        reward = sum(by_step)
    if reward is not None and not math.isfinite(reward):
        raise ApiError(400, f"the rewards of trajectory '{trajectory.uid}' add up to {reward}", param="reward")
    ended = replace(
        trajectory,
        answer=trajectory.answer if answer is None else answer,
        error=error,
        rewards={**({} if reward is None else {"given": reward}), **rewards},
        reward=reward,
    )
    return ended if reward is not None or grade is None else await grade.score(ended)
