"""What every algorithm's config holds: the shape of its policy loss, its KL term, and how token losses are averaged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from midstream.core.config import Config

Aggregation = Literal["trajectory_turn_token", "token_mean", "sequence_mean"]


class KLConfig(Config):
    """Distance to the reference policy, estimated per token by k3 = exp(d) - d - 1, d = log pi_ref - log pi (Schulman
    2020)."""

    coef: float = Field(default=0.001, ge=0)
    """Weight of the KL term in the loss; at 0 the reference is only run to measure."""
    reference: Literal["base", "start"] = "base"
    """`base`: the model with its adapter off. `start`: the policy as it was when reinforcement learning began."""
    measure_every: int = Field(default=10, ge=0)
    """With `coef` 0, measure the KL every so many steps; 0 never."""


class PolicyLoss(Config):
    """The clipped surrogate of PPO (Schulman et al. 2017, eq. 7) with separate bounds: L = -min(r A, clip(r, 1 - low, 1
    + high) A)."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower bound of the ratio is 1 - this."""
    clip_high: float = Field(default=0.3, gt=0)
    """Upper bound of the ratio is 1 + this."""
    aggregation: Aggregation = "trajectory_turn_token"
    """`trajectory_turn_token`: mean over trajectories of the mean over turns of the mean over tokens (Flow-GRPO).
    `token_mean`: mean over all tokens of the batch. `sequence_mean`: mean over turns of the mean over tokens."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    kl: KLConfig = KLConfig()
    """The KL term."""
