"""The KL term as a part of the reward: what a trajectory drifted from the reference is taken from what it earned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from midstream.core.types import Step, Trajectory
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.batch import trainable_steps


def penalised(
    groups: Sequence[Sequence[Trajectory]], readings: Mapping[TurnKey, PolicyOutputs], coef: float
) -> tuple[list[list[Trajectory]], float]:
    """`groups` with coef x (log pi_old - log pi_ref), summed over a step's tokens, taken from each trainable step's
    reward and from the trajectory's (k1, Schulman 2020, as PPO and RLOO for language models have it); and its mean by
    token. `readings` hold the reference of every trainable step."""
    drift: dict[TurnKey, float] = {}
    tokens = 0
    for trajectory in (trajectory for group in groups for trajectory in group):
        for step in trainable_steps(trajectory):
            place = (trajectory.uid, step.step_index)
            theirs = readings[place].reference
            drift[place] = sum(old - ref for old, ref in zip(step.rollout_log_probs or (), theirs, strict=True))
            tokens += len(theirs)

    def charged(step: Step, own: float) -> Step:
        return replace(step, reward=(step.reward or 0.0) - coef * own) if own else step

    def taxed(trajectory: Trajectory) -> Trajectory:
        if trajectory.reward is None:
            return trajectory
        own = [drift.get((trajectory.uid, step.step_index), 0.0) for step in trajectory.steps]
        return replace(
            trajectory,
            reward=trajectory.reward - coef * sum(own),
            steps=tuple(charged(step, part) for step, part in zip(trajectory.steps, own, strict=True)),
        )

    taxed_groups = [[taxed(trajectory) for trajectory in group] for group in groups]
    return taxed_groups, sum(drift.values()) / tokens if tokens else 0.0
