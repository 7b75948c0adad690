"""Reward normalisation (`reward.normalize`): R' = (R - mean) / (std + 1e-8), std without a correction for degrees of
freedom (ddof 0), after `reward.clip` and before a KL penalty and the advantages.

Rewards that are all equal are centred and not divided. What is recorded and logged stays the reward as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from midstream.core.types import Trajectory
from midstream.learn.batch import finite_reward
from midstream.rewards.compose import Normalize

EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Moments:
    """How many numbers there were, their mean, and the sum of their squared distances to it (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def including(self, values: Iterable[float]) -> Moments:
        """These and `values`."""
        count, mean, squares = self.count, self.mean, self.squares
        for value in values:
            count += 1
            before = value - mean
            mean += before / count
            squares += before * (value - mean)
        return Moments(count, mean, squares)

    def apply(self, value: float) -> float:
        """`value` normalised."""
        return (value - self.mean) / self.scale

    @property
    def scale(self) -> float:
        """What is divided by: the standard deviation + 1e-8, or 1 where all are equal."""
        return math.sqrt(self.squares / self.count) + EPS if self.squares > 0 else 1.0


def normalised(
    groups: Sequence[Sequence[Trajectory]],
    greedy: Mapping[str, float],
    how: Normalize,
    counts: Callable[[Trajectory], bool],
    so_far: Moments,
) -> tuple[list[list[Trajectory]], dict[str, float]]:
    """`groups` and what greedy attempts earned (by `prompt_uid`), with normalised rewards. Statistics are over the
    trajectories that `counts` holds for: `group` those of the same group, `batch` those of all `groups`, `running` all
    `so_far`.

    Parts of the reward on steps are divided alike; the last step takes what is left of the total. Raises
    `TrainingError` for a reward that is not finite."""
    values = [[finite_reward(t) for t in group if counts(t)] for group in groups]
    if how == "none":
        return [list(group) for group in groups], dict(greedy)
    everyone = so_far if how == "running" else Moments().including(value for own in values for value in own)
    found: list[list[Trajectory]] = []
    baselines: dict[str, float] = {}
    for group, own in zip(groups, values, strict=True):
        moments = Moments().including(own) if how == "group" else everyone
        found.append([_by(moments, trajectory) for trajectory in group])
        for uid in {trajectory.prompt_uid for trajectory in group} & greedy.keys():
            baselines[uid] = moments.apply(greedy[uid])
    return found, baselines


def _by(moments: Moments, trajectory: Trajectory) -> Trajectory:
    if trajectory.reward is None:
        return trajectory
    reward = moments.apply(trajectory.reward)
    parts = [(step.reward or 0.0) / moments.scale for step in trajectory.steps[:-1]]
    parts.append(reward - math.fsum(parts))
    steps = tuple(replace(step, reward=part) for step, part in zip(trajectory.steps, parts, strict=False))
    return replace(trajectory, reward=reward, steps=steps)
