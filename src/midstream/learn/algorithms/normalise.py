"""Reward normalization (`reward.normalize`): R' = (R - mean) / (std + 1e-8), std with ddof 0. Runs after `reward.clip`
and before a KL penalty and the advantages.

Equal rewards are centred but not divided. Recorded and logged rewards stay unnormalized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from midstream.core.types import Trajectory
from midstream.learn.data.batch import finite_reward
from midstream.rewards.compose import Normalize

EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of a series (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def updated(self, values: Iterable[float]) -> Moments:
        """Return the moments after adding `values`."""
        count, mean, squares = self.count, self.mean, self.squares
        for value in values:
            count += 1
            before = value - mean
            mean += before / count
            squares += before * (value - mean)
        return Moments(count, mean, squares)

    def apply(self, value: float) -> float:
        """Normalize `value`."""
        return (value - self.mean) / self.scale

    @property
    def scale(self) -> float:
        """Divisor: the standard deviation + 1e-8, or 1 when all values are equal."""
        return math.sqrt(self.squares / self.count) + EPS if self.squares > 0 else 1.0


def normalise_rewards(
    groups: Sequence[Sequence[Trajectory]],
    greedy: Mapping[str, float],
    how: Normalize,
    is_counted: Callable[[Trajectory], bool],
    so_far: Moments,
) -> tuple[list[list[Trajectory]], dict[str, float]]:
    """Normalize the rewards of `groups` and of greedy attempts (by `prompt_uid`).

    Statistics cover the trajectories accepted by `is_counted`: those of the same group (`group`), of all `groups`
    (`batch`), or all `so_far` (`running`). Step rewards are divided by the same scale; the last step gets the remainder
    of the total. Raises `TrainingError` for a reward that is not finite.
    """
    values = [[finite_reward(t) for t in group if is_counted(t)] for group in groups]
    if how == "none":
        return [list(group) for group in groups], dict(greedy)
    shared = so_far if how == "running" else Moments().updated(value for own in values for value in own)
    result: list[list[Trajectory]] = []
    baselines: dict[str, float] = {}
    for group, own in zip(groups, values, strict=True):
        moments = Moments().updated(own) if how == "group" else shared
        result.append([_normalise(moments, trajectory) for trajectory in group])
        for uid in {trajectory.prompt_uid for trajectory in group} & greedy.keys():
            baselines[uid] = moments.apply(greedy[uid])
    return result, baselines


def _normalise(moments: Moments, trajectory: Trajectory) -> Trajectory:
    if trajectory.reward is None:
        return trajectory
    reward = moments.apply(trajectory.reward)
    parts = [(step.reward or 0.0) / moments.scale for step in trajectory.steps[:-1]]
    parts.append(reward - math.fsum(parts))
    steps = tuple(replace(step, reward=part) for step, part in zip(trajectory.steps, parts, strict=False))
    return replace(trajectory, reward=reward, steps=steps)
