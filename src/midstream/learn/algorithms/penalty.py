"""KL penalty in the reward: subtracts the distance to the reference policy from each step's reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from midstream.core.types import Step, Trajectory
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.data.batch import trainable_steps


def penalise_rewards(
    groups: Sequence[Sequence[Trajectory]], outputs: Mapping[TurnKey, PolicyOutputs], coef: float
) -> tuple[list[list[Trajectory]], float]:
    """Subtract coef x (log pi_old - log pi_ref), summed over a step's tokens, from each trainable step's reward and
    from the trajectory's reward (k1, Schulman 2020, as in PPO and RLOO for language models).

    `outputs` holds reference log-probabilities of all trainable steps. Returns the groups and the mean penalty per
    token before `coef`.
    """
    drift: dict[TurnKey, float] = {}
    tokens = 0
    for trajectory in (trajectory for group in groups for trajectory in group):
        for step in trainable_steps(trajectory):
            key = (trajectory.uid, step.step_index)
            reference = outputs[key].reference
            drift[key] = sum(old - ref for old, ref in zip(step.rollout_log_probs or (), reference, strict=True))
            tokens += len(reference)

    def penalise_step(step: Step, kl: float) -> Step:
        return replace(step, reward=(step.reward or 0.0) - coef * kl) if kl else step

    def penalise(trajectory: Trajectory) -> Trajectory:
        if trajectory.reward is None:
            return trajectory
        kls = [drift.get((trajectory.uid, step.step_index), 0.0) for step in trajectory.steps]
        return replace(
            trajectory,
            reward=trajectory.reward - coef * sum(kls),
            steps=tuple(penalise_step(step, kl) for step, kl in zip(trajectory.steps, kls, strict=True)),
        )

    penalised_groups = [[penalise(trajectory) for trajectory in group] for group in groups]
    return penalised_groups, sum(drift.values()) / tokens if tokens else 0.0
