"""Group-relative advantages: GRPO (Shao et al. 2024, arXiv 2402.03300), Flow-GRPO (Li et al. 2025, arXiv 2510.05592)
and their variants.

A_i = (R_i - mean(R)) / (s + eps) over the rewards of one task's trajectories. Implementations differ in s, so it is
explicit: `std: group` with `ddof` 1 and `eps` 1e-6 is verl's, with `eps` 1e-4 TRL's, with `ddof` 0 rLLM's; `std: none`
is prime-rl's; `std: batch` divides by the root mean square of R_i - mean(R) over the whole batch, `std: batch_rewards`
by the standard deviation of the whole batch's rewards (Lite PPO, Liu et al. 2025, arXiv 2508.08221; with `ddof` 1 TRL's
`scale_rewards: batch`).

Statistics are over trajectories, never over turns: a long trajectory has no more weight in its own baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from midstream.learn.algorithms.base import Aggregation, Algorithm
from midstream.learn.algorithms.outcome import Advantages, Groups, TurnOutcome, returns, to_every_turn

Std = Literal["group", "batch", "batch_rewards", "none"]


def relative(groups: Sequence[Sequence[float]], std: Std, ddof: int, eps: float) -> list[list[float]]:
    """Return (value - mean of its group) / (s + eps), with s by `std`. A group with equal values gets zeros."""
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    centred = [a - a.mean() if len(a) and np.ptp(a) > 0 else np.zeros(len(a)) for a in arrays]
    if std == "batch":
        pooled = np.concatenate(centred) if centred else np.zeros(1)
        divisors = [math.sqrt(float(np.mean(pooled**2))) + eps if len(pooled) else 1.0] * len(groups)
    elif std == "batch_rewards":
        rewards = np.concatenate(arrays) if arrays else np.zeros(0)
        divisors = [float(np.std(rewards, ddof=ddof)) + eps if len(rewards) > ddof else 1.0] * len(groups)
    elif std == "group":
        divisors = [float(np.std(g, ddof=ddof)) + eps if len(g) > ddof else 1.0 for g in groups]
    else:
        divisors = [1.0] * len(groups)
    return [(c / d).tolist() if d > 0 else c.tolist() for c, d in zip(centred, divisors, strict=True)]


class _GroupRelative(Algorithm):
    needs_spread: ClassVar[bool] = True

    std: Std = "group"
    """Divisor of the centred reward."""
    ddof: Literal[0, 1] = 1
    """Degrees of freedom subtracted in the standard deviation of a group, or of the batch's rewards."""
    eps: float = Field(default=1e-6, ge=0)
    """Added to the divisor."""

    def relative(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """Apply `relative` with this config."""
        return relative(groups, self.std, self.ddof, self.eps)

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        return to_every_turn(groups, self.relative([[outcome.reward for outcome in group] for group in groups]))


class GRPO(_GroupRelative):
    """A = (R - mean) / (s + eps) over the group (Shao et al. 2024), averaged over all tokens of the batch as in DAPO
    (Yu et al. 2025)."""

    name: Literal["grpo"] = "grpo"
    """Group Relative Policy Optimization."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged."""

    by_trajectory: ClassVar[bool] = True


class FlowGRPO(_GroupRelative):
    """A = (R - mean) / (s + eps) over the group's trajectories, for every trainable turn of a trajectory (Li et al.
    2025, arXiv 2510.05592), averaged over trajectories, turns and tokens."""

    name: Literal["flow_grpo"] = "flow_grpo"
    """Flow-based Group Refined Policy Optimization."""

    by_trajectory: ClassVar[bool] = True


class DrGRPO(Algorithm):
    """A = R - mean (Dr. GRPO, "GRPO done right", Liu et al. 2025). Token losses are divided by a constant, so that
    neither easy tasks nor short answers get more weight."""

    name: Literal["dr_grpo"] = "dr_grpo"
    """GRPO done right."""
    aggregation: Aggregation = "constant_length"
    """How token losses are averaged."""

    by_trajectory: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        rewards = [[outcome.reward for outcome in group] for group in groups]
        return to_every_turn(groups, relative(rewards, "none", 0, 0.0))


class _StepRelative(_GroupRelative):
    """A turn's return relative to the group's turns with the same `key`."""

    discount: float = Field(default=1.0, gt=0, le=1)
    """Discount per turn."""

    def key(self, turn: TurnOutcome) -> object:
        """Return the key by which turns of a group are compared: the role."""
        return turn.role

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        return by_key(groups, self.discount, self.key, self.relative)


class RoleGRPO(_StepRelative):
    """A turn's return relative to the group's turns of the same role."""

    name: Literal["role_grpo"] = "role_grpo"
    """GRPO by role."""


class _OutcomeAndSteps(_StepRelative):
    """The trajectory's relative outcome, plus `step_weight` times the turn's relative return."""

    step_weight: float = Field(default=0.5, ge=0)
    """Weight (omega) of the step's relative return."""

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        outcome = self.relative([[outcome.reward for outcome in group] for group in groups])
        return _sum(to_every_turn(groups, outcome), super().advantages(groups), self.step_weight)


class StepwiseGRPO(_OutcomeAndSteps):
    """Step-wise and terminal credit: the trajectory's relative outcome, plus the turn's return relative to the group's
    turns of the same role."""

    name: Literal["stepwise_grpo"] = "stepwise_grpo"
    """GRPO on outcomes and steps."""


class GiGPO(_OutcomeAndSteps):
    """Group in group (Feng et al. 2025): the trajectory's relative outcome, plus `step_weight` times a turn's return
    relative to the group's turns that began in the same state. A state with a single turn adds nothing."""

    name: Literal["gigpo"] = "gigpo"
    """Group-in-group policy optimization."""
    step_weight: float = Field(default=1.0, ge=0)
    """Weight (omega) of the step's relative return."""
    discount: float = Field(default=0.95, gt=0, le=1)
    """Discount per turn."""

    def key(self, turn: TurnOutcome) -> object:
        """Return the state in which the turn began."""
        return turn.state


class GDPO(Algorithm):
    """Group reward-decoupled normalization (Liu et al. 2026, arXiv 2601.05242): each reward component is normalized in
    its group, and their weighted sum is whitened over the batch. A component with a large spread therefore cannot
    dominate one with a small spread. A component that does not apply to a trajectory counts as its group's mean."""

    name: Literal["gdpo"] = "gdpo"
    """GRPO with decoupled components."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight by component; defaults to the weight in the reward."""
    eps: float = Field(default=1e-6, ge=0)
    """Added to standard deviations."""

    rewards_as_given: ClassVar[bool] = True
    needs_components: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def for_reward(self, weights: Mapping[str, float]) -> GDPO:
        """As `Algorithm.for_reward`."""
        return self.model_copy(update={"weights": {**weights, **self.weights}})

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        names = list(dict.fromkeys(name for group in groups for outcome in group for name in outcome.components))
        totals = [np.zeros(len(group)) for group in groups]
        for name in names:
            for number, group in enumerate(groups):
                (normalised,) = relative([_fill_missing([o.components.get(name) for o in group])], "group", 1, self.eps)
                totals[number] += self.weights.get(name, 1.0) * np.array(normalised)
        pooled = np.concatenate(totals) if totals else np.zeros(0)
        # Components that cancel leave rounding errors, which must not be amplified.
        if len(pooled) < 2 or np.ptp(pooled) < 1e-9:
            return to_every_turn(groups, [[0.0] * len(group) for group in groups])
        mean, scale = float(pooled.mean()), float(pooled.std(ddof=1)) + self.eps
        return to_every_turn(groups, [((total - mean) / scale).tolist() for total in totals])


def by_key(
    groups: Groups,
    discount: float,
    key: Callable[[TurnOutcome], object],
    relate: Callable[[Sequence[Sequence[float]]], list[list[float]]],
) -> Advantages:
    """Return each turn's return relative to the group's turns with the same `key(turn)`."""
    turns_by_key: dict[tuple[int, object], list[tuple[int, int, int]]] = {}
    for number, group in enumerate(groups):
        for member, outcome in enumerate(group):
            for index, turn in enumerate(outcome.turns):
                turns_by_key.setdefault((number, key(turn)), []).append((number, member, index))
    earned = [[returns(outcome, discount) for outcome in group] for group in groups]
    # One call for the whole batch, because `relate` may use batch statistics.
    sets = list(turns_by_key.values())
    values = relate([[earned[number][member][index] for number, member, index in turns] for turns in sets])
    result: Advantages = [[[0.0] * len(outcome.turns) for outcome in group] for group in groups]
    for turns, related in zip(sets, values, strict=True):
        for (number, member, index), value in zip(turns, related, strict=True):
            result[number][member][index] = value
    return result


def _sum(one: Advantages, other: Advantages, weight: float) -> Advantages:
    return [
        [
            [float(a) + weight * float(b) for a, b in zip(own, others, strict=True)]  # type: ignore[arg-type]
            for own, others in zip(group, other_group, strict=True)
        ]
        for group, other_group in zip(one, other, strict=True)
    ]


def _fill_missing(values: Sequence[float | None]) -> list[float]:
    present = [value for value in values if value is not None]
    mean = float(np.mean(present)) if present else 0.0
    return [mean if value is None else value for value in values]
