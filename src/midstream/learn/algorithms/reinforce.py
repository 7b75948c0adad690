"""REINFORCE and its variants: returns, baselines, whitening."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from midstream.core.errors import TrainingError
from midstream.learn.algorithms.base import Aggregation, Algorithm
from midstream.learn.algorithms.outcome import Advantages, Groups, Outcome, returns, to_every_turn
from midstream.learn.algorithms.role_credit import next_baselines, over_baselines

WHITEN_EPS = 1e-8


class Reinforce(Algorithm):
    """REINFORCE (Williams 1992): A = R - b. On fresh samples the clipped ratio is 1 and the gradient is A grad log pi.
    With `credit: return`, a turn gets its return G_t = r_t + discount G_{t+1}, over at most `horizon` turns."""

    name: Literal["reinforce"] = "reinforce"
    """REINFORCE."""
    baseline: Literal["batch", "none"] = "batch"
    """Baseline b: the batch mean, or 0."""
    credit: Literal["trajectory", "return"] = "trajectory"
    """Credit of a turn: the trajectory's reward, or the return from this turn on."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Discount per turn, with `credit: return`."""
    horizon: int | None = Field(default=None, ge=1)
    """Maximum number of turns in a return, with `credit: return`; null means all."""

    by_trajectory: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_credit(self) -> Reinforce:
        if self.credit == "return" and self.role_credit.name != "shared":
            raise ValueError(
                f"role_credit '{self.role_credit.name}' values whole trajectories, and credit 'return' values turns; "
                "set credit=trajectory or role_credit.name=shared"
            )
        return self

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        if self.credit == "trajectory":
            values = [[[outcome.reward] * len(outcome.turns) for outcome in group] for group in groups]
            mean = _mean([outcome.reward for group in groups for outcome in group])
        else:
            values = [
                [_truncated_returns(outcome, self.discount, self.horizon) for outcome in group] for group in groups
            ]
            mean = _mean([value for group in values for own in group for value in own])
        baseline = mean if self.baseline == "batch" else 0.0
        return [[[value - baseline for value in own] for own in group] for group in values]


class ReinforcePlusPlus(Algorithm):
    """REINFORCE++ (Hu 2025): each token's discounted return, whitened over all trainable tokens of the batch. A turn's
    reward is earned at its last token; tokens not sampled by the policy are skipped."""

    name: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    """REINFORCE++."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged; statistics are over tokens too."""

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`, by token."""
        return whitened([[_by_token(outcome, self.discount) for outcome in group] for group in groups])


class ReinforcePlusPlusBaseline(Algorithm):
    """REINFORCE++ with the group mean as baseline, whitened over all trainable tokens of the batch (Hu 2025)."""

    name: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    """REINFORCE++ with a baseline."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged; statistics are over tokens too."""

    by_trajectory: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`, by token."""
        centred = [[o.reward - _mean([m.reward for m in group]) for o in group] for group in groups]
        return whitened(
            [
                [[[value] * turn.tokens for turn in outcome.turns] for outcome, value in zip(group, own, strict=True)]
                for group, own in zip(groups, centred, strict=True)
            ]
        )


class RoleBaseline(Algorithm):
    """REINFORCE with a running baseline for each role, b <- decay b + (1 - decay) mean R, kept across training steps:
    for self-play, where one role's gain is another's loss (SPIRAL, Liu et al. 2025). R is the role's reward in the
    trajectory. A training step uses the baseline before it; the first one uses its own mean."""

    name: Literal["role_baseline"] = "role_baseline"
    """REINFORCE with running baselines by role."""
    decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the baseline per training step."""
    credit: Literal["role", "trajectory"] = "role"
    """Reward of a role: the sum over its own turns, or the trajectory's reward."""

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        return over_baselines(groups, self.credit)

    def remember(self, groups: Groups) -> dict[str, float]:
        """Return the baselines after this training step."""
        return next_baselines(groups, self.credit, self.decay)


class RLOO(Algorithm):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): the baseline of a trajectory is the mean of the others in its
    group, A = n / (n - 1) (R - mean). A single trajectory has advantage 0."""

    name: Literal["rloo"] = "rloo"
    """REINFORCE leave-one-out."""

    by_trajectory: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        return to_every_turn(groups, [_scaled(group, len(group) / max(len(group) - 1, 1)) for group in groups])


class MaxRL(Algorithm):
    """A = (R - mean) / (mean + eps): gives rare successes more weight, as MaxRL and SkyRL compute it."""

    name: Literal["maxrl"] = "maxrl"
    """Maximum-likelihood reinforcement learning."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the mean."""

    rewards_as_given: ClassVar[bool] = True
    by_trajectory: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`. Raises `TrainingError` for a negative reward."""
        lowest = min((outcome.reward for group in groups for outcome in group), default=0.0)
        if lowest < 0:
            raise TrainingError(
                f"maxrl divides by the mean reward of a group, which allows no negative reward of {lowest:g}",
                "set reward.clip to exclude negative rewards, or use another algorithm",
            )
        return to_every_turn(
            groups, [_scaled(group, 1 / (_mean([o.reward for o in group]) + self.eps)) for group in groups]
        )


class GPG(Algorithm):
    """A = alpha (R - mean), alpha = trajectories / trajectories with a nonzero reward, over the batch (Chu et al.
    2025). The paper's loss is `reinforce`."""

    name: Literal["gpg"] = "gpg"
    """Group policy gradient."""

    by_trajectory: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        rewards = [outcome.reward for group in groups for outcome in group]
        alpha = len(rewards) / max(sum(reward != 0 for reward in rewards), 1)
        return to_every_turn(groups, [_scaled(group, alpha) for group in groups])


class ReMax(Algorithm):
    """A = R - R_greedy, where R_greedy is the reward of a greedy attempt at the same task (Li et al. 2024, arXiv
    2310.10505). Costs one extra attempt per task; when that attempt fails, the group mean replaces it."""

    name: Literal["remax"] = "remax"
    """REINFORCE with the greedy attempt as baseline."""
    greedy_baseline: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        values: list[list[float]] = []
        for group in groups:
            mean = _mean([outcome.reward for outcome in group])
            values.append([o.reward - (mean if o.greedy is None else o.greedy) for o in group])
        return to_every_turn(groups, values)


class OPO(Algorithm):
    """A = R - b, where b is the group's mean reward weighted by length: the minimum-variance baseline when the
    gradient's size grows with the number of tokens (OPO, Hao et al. 2025)."""

    name: Literal["opo"] = "opo"
    """On-policy RL with optimal baseline."""

    by_trajectory: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        values: list[list[float]] = []
        for group in groups:
            tokens = sum(outcome.tokens for outcome in group)
            baseline = sum(outcome.tokens * outcome.reward for outcome in group) / tokens if tokens else 0.0
            values.append([outcome.reward - baseline for outcome in group])
        return to_every_turn(groups, values)


def whitened(values: list[list[list[list[float]]]]) -> Advantages:
    """Return (x - mean) / sqrt(var + 1e-8) over every token of the batch, with unbiased var: `masked_whiten` in verl
    and TRL."""
    flat = np.array([token for group in values for own in group for turn in own for token in turn], dtype=np.float64)
    if len(flat) < 2 or np.ptp(flat) == 0:
        return [[[[0.0] * len(turn) for turn in own] for own in group] for group in values]
    mean, scale = float(flat.mean()), 1 / float(np.sqrt(flat.var(ddof=1) + WHITEN_EPS))
    return [[[[(token - mean) * scale for token in turn] for turn in own] for own in group] for group in values]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _scaled(group: Sequence[Outcome], scale: float) -> list[float]:
    rewards = [outcome.reward for outcome in group]
    mean = _mean(rewards)
    # The mean of equal rewards may have a rounding error; their advantages must be exactly 0.
    return [0.0 if max(rewards) == min(rewards) else (reward - mean) * scale for reward in rewards]


def _truncated_returns(outcome: Outcome, discount: float, horizon: int | None) -> list[float]:
    if horizon is None:
        return returns(outcome, discount)
    rewards = [turn.reward for turn in outcome.turns]
    return [
        sum(discount**ahead * reward for ahead, reward in enumerate(rewards[t : t + horizon]))
        for t in range(len(rewards))
    ]


def _by_token(outcome: Outcome, discount: float) -> list[list[float]]:
    """Return the discounted return of each token; a turn's reward is earned at its last token."""
    result: list[list[float]] = []
    return_ = 0.0
    for turn in reversed(outcome.turns):
        own: list[float] = []
        for index in range(turn.tokens):
            return_ = (turn.reward if index == 0 else 0.0) + discount * return_
            own.append(return_)
        result.append(own[::-1])
    return result[::-1]
