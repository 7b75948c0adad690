"""What every algorithm's config holds: the policy loss, the KL term, and how token losses are averaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.learn.algorithms.outcome import Advantages, Groups
from midstream.learn.losses import LossConfig
from midstream.learn.losses.kl import Estimator
from midstream.learn.losses.ratio import PPOClip

Aggregation = Literal[
    "trajectory_turn_token", "token_mean", "sequence_mean", "sequence_sum", "constant_length", "prompt_mean", "sum"
]
Reads = Literal["policy", "reference", "values"]


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
    reference: str = "base"
    """`base`: the model with its adapter off. `start`: the policy as it was when reinforcement learning began. Else a
    checkpoint of a run, or a model with the same vocabulary, by name or directory."""
    measure_every: int = Field(default=10, ge=0)
    """With `coef` 0, measure the KL every so many steps; 0 never."""

    def followed(self, coef: float, kl: float, trajectories: int) -> float:
        """`coef` after a step of that many trajectories with that KL."""
        if self.target is None:
            return coef
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return coef * (1 + error * min(trajectories / self.horizon, 1.0))

    @model_validator(mode="after")
    def _followable(self) -> KLConfig:
        if self.target is not None and not self.coef:
            raise ValueError("kl.target needs a kl.coef above 0 to begin with: 0 times anything stays 0")
        return self


class CorrectionConfig(Config):
    """Importance weights rho = pi_old / pi_sampler, where pi_old is the learner's policy as the step begins and
    pi_sampler the engine's. They differ when the engine computes otherwise or the samples are old. With a correction,
    the policy loss of a token is multiplied by its weight, and its ratio is taken to pi_old; without, the ratio is
    taken to pi_sampler. Where `trainer.minibatches` is above 1, a correction costs one more forward pass."""

    level: Literal["auto", "none", "token", "sequence", "sequence_mean"] = "auto"
    """`token`: rho of each token. `sequence`: the product over a turn, for all its tokens. `sequence_mean`: its
    geometric mean. `none`: no correction. `auto`: `none` while sampler and learner agree, `token` from the step after
    the one in which they differ by more than `threshold`."""
    threshold: float = Field(default=0.01, gt=0, lt=1)
    """For `auto`: share of a step's tokens whose ratio is outside the loss's clip range before any update (the metric
    `mismatch/clipped`, of fresh tokens where there are any), above which the next steps are corrected, until it is
    below half of this."""
    rule: Literal["truncate", "mask", "band"] = "truncate"
    """`truncate`: min(rho, high) (Yao et al. 2025, TIS). `mask`: 0 where rho > high, else rho. `band`: 0 where rho is
    outside [low, high], else 1."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound."""
    low: float = Field(default=0.0, ge=0)
    """Lower bound, for `band`."""


class Algorithm(Config, ABC):
    """An advantage estimator with its settings, and the loss its advantages go into."""

    loss: LossConfig = PPOClip()
    """The policy loss."""
    aggregation: Aggregation = "trajectory_turn_token"
    """`trajectory_turn_token`: mean over trajectories of the mean over turns of the mean over tokens (Flow-GRPO).
    `token_mean`: mean over all tokens of the batch (DAPO). `sequence_mean`: mean over turns of the mean over tokens.
    `sequence_sum`: mean over turns of the sum over tokens. `constant_length`: the same divided by `longest` (Dr. GRPO).
    `prompt_mean`: mean over prompts of the mean over their tokens. `sum`: tokens added up, for advantages that are
    shares already."""
    longest: int = Field(default=256, ge=1)
    """Tokens that `constant_length` divides by: the most a response may have."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    top_entropy: float = Field(default=1.0, gt=0, le=1)
    """Share of the step's sampled tokens, those of highest entropy, that carry the policy loss (Wang et al. 2025,
    "Beyond the 80/20 rule", with 0.2); the denominators still count every token."""
    correction: CorrectionConfig = CorrectionConfig()
    """Correction for samples of another policy than the learner's."""
    kl: KLConfig = KLConfig()
    """The KL term."""

    greedy_baseline: ClassVar[bool] = False
    """Whether it needs a greedy attempt at each task."""
    reads: ClassVar[frozenset[Reads]] = frozenset()
    """What it needs to be read of every turn before there are advantages."""
    by_reward: ClassVar[bool] = True
    """Whether a trajectory with a higher reward has a higher advantage."""
    rewards_as_given: ClassVar[bool] = False
    """Whether rewards mean something to it as they were given only: not normalised, and no KL taken from them."""
    needs_group: ClassVar[bool] = False
    """Whether every advantage is 0 in a group of one trajectory: each is compared with the rest of its group."""
    one_update: ClassVar[bool] = False
    """Whether its advantages hold for the weights they were computed at alone: one update for each batch."""

    def for_reward(self, weights: Mapping[str, float]) -> Algorithm:
        """This algorithm, told the weight of each component of the reward."""
        return self

    @abstractmethod
    def advantages(self, groups: Groups) -> Advantages:
        """The advantage of every trainable turn, by group and trajectory."""

    def targets(self, groups: Groups) -> Advantages | None:
        """What a critic should say of every token; None without a critic."""
        return None

    def remember(self, groups: Groups) -> Mapping[str, float]:
        """What to keep for the next steps, kept in checkpoints: every outcome's `memory` there."""
        return {}

    def metrics(self, groups: Groups) -> Mapping[str, float]:
        """What the step's row should say of it."""
        return {}
