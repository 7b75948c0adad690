"""What a trajectory ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from midstream.core.types import Trajectory
from midstream.gateway.http.errors import ApiError
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
    """`trajectory` with its answer and what it is worth.

    `grade` has the last word. What a client gave (a total or else the sum of its steps' own rewards, and components by
    name) stays beside that: all of it in `metadata["given"]`, which the component `given` reads, and the total as
    `rewards["given"]`. Without `grade` what was given is the reward; components make no total, so where there are only
    these, or nothing, the trainer scores it. Raises `ApiError` 400 for a reward that is no number."""
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
    if grade is None:
        return ended
    graded = await grade.score(ended)
    return replace(graded, rewards={**total, **graded.rewards})
