"""Settings shared by all algorithms: policy loss, KL term, and aggregation of token losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.learn.algorithms.critic import CriticConfig
from midstream.learn.algorithms.outcome import Advantages, Groups
from midstream.learn.algorithms.role_credit import RoleCreditConfig, SharedCredit
from midstream.learn.losses import LossConfig
from midstream.learn.losses.kl import Estimator
from midstream.learn.losses.ratio import PPOClip

Aggregation = Literal[
    "trajectory_turn_token", "token_mean", "sequence_mean", "sequence_sum", "constant_length", "prompt_mean", "sum"
]
OutputKind = Literal["policy", "reference", "values"]


class KLConfig(Config):
    """KL divergence from the reference policy, estimated per token."""

    coef: float = Field(default=0.001, ge=0)
    """Weight of the KL term in the loss. At 0 the KL is only measured."""
    estimator: Estimator = "k3"
    """With d = log pi_ref - log pi: `k1` = -d, `k2` = d^2 / 2, `k3` = exp(d) - d - 1 (Schulman 2020); `k1_st` and
    `k3_st` have the value of k1 or k3 and the gradient of k2."""
    placement: Literal["loss", "reward"] = "loss"
    """`loss`: a term per token. `reward`: subtract `coef` times k1, summed over a step's tokens, from the step's reward
    before advantages are computed."""
    target: float | None = Field(default=None, gt=0)
    """Target KL per token for an adaptive `coef` (Ziegler et al. 2019); null keeps `coef` constant."""
    horizon: int = Field(default=10_000, ge=1)
    """With `target`: trajectories over which `coef` changes by at most 20 %."""
    reference: str = "base"
    """`base`: the model without its adapter. `start`: the policy at the start of reinforcement learning. Otherwise a
    checkpoint of a run, or a model with the same vocabulary, by name or directory."""
    measure_every: int = Field(default=10, ge=0)
    """With `coef` 0: training steps between measurements of the KL; 0 disables them."""

    def adapted_coef(self, coef: float, kl: float, trajectories: int) -> float:
        """Return the adapted `coef` after a training step with this KL and number of trajectories."""
        if self.target is None:
            return coef
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return coef * (1 + error * min(trajectories / self.horizon, 1.0))

    @model_validator(mode="after")
    def _followable(self) -> KLConfig:
        if self.target is not None and not self.coef:
            raise ValueError("kl.target needs an initial kl.coef above 0: a coefficient of 0 cannot adapt")
        return self


class CorrectionConfig(Config):
    """Importance weights rho = pi_old / pi_sampler, where pi_old is the learner's policy at the start of the training
    step and pi_sampler the engine's.

    The two differ when the engine computes differently or the samples are old. With a correction, the policy loss of a
    token is multiplied by its weight, and its ratio is relative to pi_old; without one, the ratio is relative to
    pi_sampler. With `trainer.minibatches` above 1, a correction costs one more forward pass.
    """

    level: Literal["auto", "none", "token", "sequence", "sequence_mean"] = "auto"
    """`token`: rho of each token. `sequence`: the product over a turn, for all its tokens. `sequence_mean`: its
    geometric mean. `none`: no correction. `auto`: `none` while sampler and learner agree, `token` starting with the
    training step after they differ by more than `threshold`."""
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
    """An advantage estimator with its settings and policy loss."""

    loss: LossConfig = PPOClip()
    """The policy loss."""
    aggregation: Aggregation = "trajectory_turn_token"
    """`trajectory_turn_token`: mean over trajectories of the mean over turns of the mean over tokens (Flow-GRPO).
    `token_mean`: mean over all tokens of the batch (DAPO). `sequence_mean`: mean over turns of the mean over tokens.
    `sequence_sum`: mean over turns of the sum over tokens. `constant_length`: the same divided by `longest` (Dr. GRPO).
    `prompt_mean`: mean over prompts of the mean over their tokens. `sum`: sum over tokens, for advantages that already
    include the mean."""
    longest: int = Field(default=256, ge=1)
    """Divisor of `constant_length`: the maximum number of tokens per response."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    top_entropy: float = Field(default=1.0, gt=0, le=1)
    """Share of the training step's sampled tokens, those with the highest entropy, that carry the policy loss (Wang et
    al. 2025, "Beyond the 80/20 rule", with 0.2). The denominators still count every token."""
    correction: CorrectionConfig = CorrectionConfig()
    """Correction for samples of a policy other than the learner's."""
    kl: KLConfig = KLConfig()
    """The KL term."""
    role_credit: RoleCreditConfig = SharedCredit()
    """Credit of each module role, for flows with several trained roles."""

    by_trajectory: ClassVar[bool] = False
    """Whether it values whole trajectories by their reward and the rewards of their group or batch alone, as
    `role_credit` needs."""
    greedy_baseline: ClassVar[bool] = False
    """Whether it needs a greedy attempt at each task."""
    required_outputs: ClassVar[frozenset[OutputKind]] = frozenset()
    """Model outputs it needs for every turn before computing advantages."""
    by_reward: ClassVar[bool] = True
    """Whether a higher reward gives a trajectory a higher advantage."""
    rewards_as_given: ClassVar[bool] = False
    """Whether it needs unmodified rewards: no normalization, no KL penalty."""
    needs_components: ClassVar[bool] = False
    """Whether it needs the reward's components, which a failed trajectory with the reward `reward.failed` lacks."""
    needs_spread: ClassVar[bool] = False
    """Whether it needs rewards that differ within a group: in a group of one trajectory every advantage is 0."""
    one_update: ClassVar[bool] = False
    """Whether advantages are valid only for the weights they were computed with: one update per batch."""

    @model_validator(mode="after")
    def _credits_roles(self) -> Algorithm:
        credit = self.role_credit.name
        if credit != "shared" and not self.by_trajectory:
            raise ValueError(
                f"role_credit '{credit}' needs an algorithm that values whole trajectories; set name=flow_grpo, grpo, "
                "dr_grpo, rloo, reinforce, reinforce_plus_plus_baseline, opo, maxrl or gpg, or "
                "role_credit.name=shared"
            )
        if credit == "difference" and self.rewards_as_given:
            raise ValueError(
                "role_credit 'difference' gives negative rewards, and this algorithm needs rewards as they are; "
                "set name=flow_grpo"
            )
        return self

    @property
    def required_critic(self) -> CriticConfig | None:
        """The critic that it needs; None if it needs none."""
        return None

    def for_reward(self, weights: Mapping[str, float]) -> Algorithm:
        """Return this algorithm configured with the weight of each reward component."""
        return self

    @abstractmethod
    def advantages(self, groups: Groups) -> Advantages:
        """Return the advantage of every trainable turn, by group and trajectory."""

    def credited(self, groups: Groups) -> Advantages:
        """Return the advantage of every trainable turn by `role_credit`."""
        return self.role_credit.advantages(self.advantages, groups)

    def remembered(self, groups: Groups) -> Mapping[str, float]:
        """Return the state for later training steps, of the algorithm and of `role_credit`."""
        return {**self.remember(groups), **self.role_credit.remember(groups)}

    def targets(self, groups: Groups) -> Advantages | None:
        """Return the critic's target of every token; None without a critic."""
        return None

    def remember(self, groups: Groups) -> Mapping[str, float]:
        """Return state for later training steps. It is saved in checkpoints and passed on in the `memory` of every
        outcome."""
        return {}

    def metrics(self, groups: Groups) -> Mapping[str, float]:
        """Return metrics for the training step's row."""
        return {}
