"""What every algorithm's config holds: the policy loss, the KL term, and how token losses are averaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from midstream.core.config import Config
from midstream.learn.algorithms.outcome import Credits, Groups
from midstream.learn.losses import LossConfig
from midstream.learn.losses.kl import Estimator
from midstream.learn.losses.ratio import PPOClip

Aggregation = Literal[
    "trajectory_turn_token", "token_mean", "sequence_mean", "sequence_sum", "constant_length", "prompt_mean"
]


class KLConfig(Config):
    """Distance to the reference policy, estimated by token."""

    coef: float = Field(default=0.001, ge=0)
    """Weight of the KL term in the loss; at 0 the reference is only run to measure."""
    estimator: Estimator = "k3"
    """With d = log pi_ref - log pi: `k1` = -d, `k2` = d^2 / 2, `k3` = exp(d) - d - 1 (Schulman 2020); `k1_st` and
    `k3_st` have the value of k1 or k3 and the gradient of k2."""
    placement: Literal["loss", "reward"] = "loss"
    """`loss`: a term by token. `reward`: `coef` times k1, summed over its tokens, is taken from each step's reward, and
    goes through the advantages."""
    target: float | None = Field(default=None, gt=0)
    """Let `coef` follow the KL so that it stays near this, by token (Ziegler et al. 2019); None keeps it."""
    horizon: int = Field(default=10_000, ge=1)
    """Trajectories over which `coef` follows, with `target`: it changes by at most 20 % over that many."""
    reference: Literal["base", "start"] = "base"
    """`base`: the model with its adapter off. `start`: the policy as it was when reinforcement learning began."""
    measure_every: int = Field(default=10, ge=0)
    """With `coef` 0, measure the KL every so many steps; 0 never."""

    def followed(self, coef: float, kl: float, trajectories: int) -> float:
        """`coef` after a step of that many trajectories with that KL."""
        if self.target is None:
            return coef
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return coef * (1 + error * trajectories / self.horizon)


class Algorithm(Config, ABC):
    """An advantage estimator with its settings, and the loss its advantages go into."""

    loss: LossConfig = PPOClip()
    """The policy loss."""
    aggregation: Aggregation = "trajectory_turn_token"
    """`trajectory_turn_token`: mean over trajectories of the mean over turns of the mean over tokens (Flow-GRPO).
    `token_mean`: mean over all tokens of the batch (DAPO). `sequence_mean`: mean over turns of the mean over tokens.
    `sequence_sum`: mean over turns of the sum over tokens. `constant_length`: the same divided by `longest` (Dr. GRPO).
    `prompt_mean`: mean over prompts of the mean over their tokens."""
    longest: int = Field(default=256, ge=1)
    """Tokens that `constant_length` divides by: the most a response may have."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    kl: KLConfig = KLConfig()
    """The KL term."""

    greedy_baseline: ClassVar[bool] = False
    """Whether it needs a greedy attempt at each task."""

    @abstractmethod
    def advantages(self, groups: Groups) -> Credits:
        """The advantage of every trainable turn, by group and trajectory."""
