"""The KL term as a part of the reward: what a trajectory drifted from the reference is taken from what it earned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from midstream.core.types import Step, Trajectory
from midstream.learn.batch import trainable_steps
from midstream.learn.log_probs import TokenSequence

Reference = Callable[[Sequence[TokenSequence]], Sequence[float]]
"""log pi_ref of every response token, sequence after sequence."""


def penalised(
    groups: Sequence[Sequence[Trajectory]], reference: Reference, coef: float
) -> tuple[list[list[Trajectory]], float]:
    """`groups` with coef x (log pi_old - log pi_ref), summed over a step's tokens, taken from each trainable step's
    reward and from the trajectory's (k1, Schulman 2020, as PPO and RLOO for language models have it); and its mean by
    token."""
    steps = [step for group in groups for trajectory in group for step in trainable_steps(trajectory)]
    if not steps:
        return [list(group) for group in groups], 0.0
    found = iter(reference([TokenSequence(s.prompt_ids, s.response_ids, s.temperature) for s in steps]))
    drift: dict[int, float] = {}
    for step in steps:
        drift[id(step)] = sum(old - next(found) for old in step.rollout_log_probs or ())
    tokens = sum(len(step.response_ids) for step in steps)

    def charged(step: Step) -> Step:
        return replace(step, reward=(step.reward or 0.0) - coef * drift[id(step)]) if id(step) in drift else step

    def taxed(trajectory: Trajectory) -> Trajectory:
        if trajectory.reward is None:
            return trajectory
        own = sum(drift.get(id(step), 0.0) for step in trajectory.steps)
        return replace(
            trajectory, reward=trajectory.reward - coef * own, steps=tuple(charged(step) for step in trajectory.steps)
        )

    return [[taxed(trajectory) for trajectory in group] for group in groups], sum(drift.values()) / tokens
