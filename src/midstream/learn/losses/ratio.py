"""Losses on the ratio r = exp(log pi - log pi_old) of single tokens."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from midstream.learn.losses.base import SOFT_RANGE, PolicyLoss
from midstream.learn.losses.tokens import TokenBatch, TokenLoss

SMALLEST = 2.0**-126
"""Smallest normal number of fp32, which log-probabilities have."""


class ReinforceLoss(PolicyLoss):
    """-A log pi: the policy gradient, correct for samples of the current policy (Williams 1992)."""

    name: Literal["reinforce"] = "reinforce"
    """Policy gradient without a ratio."""

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token."""
        return TokenLoss(-batch.advantages * batch.log_probs, batch.weights.new_zeros(len(batch.weights)))


class PPOClip(PolicyLoss):
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO (Schulman et al. 2017, eq. 7). `clip_high` above `clip_low` is
    DAPO's clip-higher (Yu et al. 2025). `dual` c bounds the loss of negative advantages by -c A (Ye et al. 2020).
    `two_sided` delta first bounds r from above, for both signs of A (INTELLECT-2, 2025)."""

    name: Literal["ppo_clip"] = "ppo_clip"
    """The clipped surrogate."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower bound of the ratio is 1 - this."""
    clip_high: float = Field(default=0.3, gt=0)
    """Upper bound of the ratio is 1 + this."""
    dual: float | None = Field(default=None, gt=1)
    """Bound c of dual clip; usually 3."""
    two_sided: float | None = Field(default=None, gt=1)
    """Upper bound delta of the ratio itself; above 1 + clip_high."""

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`."""
        return math.log1p(-self.clip_low), math.log1p(self.clip_high)

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token."""
        ratio, advantages = batch.log_ratio.exp(), batch.advantages
        unclipped = ratio if self.two_sided is None else ratio.clamp(max=self.two_sided)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        values = -(unclipped * advantages).minimum(clipped * advantages)
        if self.dual is not None:
            values = values.minimum(-self.dual * advantages).where(advantages < 0, values)
        return TokenLoss(values, (values != -ratio * advantages).float())


class CISPO(PolicyLoss):
    """-sg[clip(r)] A log pi: every token keeps its gradient, with a bounded weight (MiniMax-M1, 2025). Bounds apply to
    the ratio itself: 0.8 and 1.28 in verl, no lower bound and 5 in TRL."""

    name: Literal["cispo"] = "cispo"
    """Clipped importance-sampling weights."""
    lower: float = Field(default=0.0, ge=0)
    """Lower bound of the ratio."""
    upper: float = Field(default=5.0, gt=0)
    """Upper bound of the ratio."""

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`."""
        return math.log(self.lower) if self.lower else -math.inf, math.log(self.upper)

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token."""
        ratio = batch.log_ratio.detach().exp()
        weight = ratio.clamp(self.lower, self.upper)
        return TokenLoss(-weight * batch.advantages * batch.log_probs, (weight != ratio).float())


class SAPO(PolicyLoss):
    """-(4 / tau) sigmoid(tau (r - 1)) A: a soft gate instead of a clip, with separate temperatures for positive and
    negative advantages (Gao et al. 2025, arXiv 2511.20347)."""

    name: Literal["sapo"] = "sapo"
    """Soft adaptive policy optimization."""
    tau_positive: float = Field(default=1.0, gt=0)
    """Temperature where A > 0."""
    tau_negative: float = Field(default=1.05, gt=0)
    """Temperature where A <= 0."""

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`."""
        return SOFT_RANGE

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token."""
        tau = batch.advantages.new_full((len(batch.advantages),), self.tau_negative)
        tau = tau.masked_fill(batch.advantages > 0, self.tau_positive)
        gate = (tau * (batch.log_ratio.exp() - 1)).sigmoid()
        return TokenLoss(-4 / tau * gate * batch.advantages, batch.weights.new_zeros(len(batch.weights)))


class DPPO(PolicyLoss):
    """-A sg[min(r, 20)] log pi, without tokens whose probability has moved too far in the direction of the advantage:
    by total variation |pi - pi_old|, or by the KL divergence of "this token or another" (arXiv 2602.04879, in verl's
    form)."""

    name: Literal["dppo"] = "dppo"
    """Divergence proximal policy optimization."""
    divergence: Literal["tv", "kl"] = "tv"
    """Measure of the change: total variation or KL divergence."""
    delta: float = Field(default=0.2, gt=0)
    """Maximum change."""

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`, for a token of probability near 1; others may move further."""
        return -math.log1p(self.delta), math.log1p(self.delta)

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token."""
        new, old = batch.log_probs.detach().exp(), batch.old_log_probs.exp()
        if self.divergence == "tv":
            moved = (new - old).abs()
        else:
            other_new, other_old = (1 - new).clamp_min(SMALLEST), (1 - old).clamp_min(SMALLEST)
            moved = old * (batch.old_log_probs - batch.log_probs.detach()) + other_old * (other_old / other_new).log()
        same_direction = (new > old).where(batch.advantages > 0, new < old)
        keep = ~(same_direction & (moved > self.delta))
        weight = batch.log_ratio.detach().exp().clamp(max=20.0)
        return TokenLoss(-weight * batch.advantages * batch.log_probs * keep, (~keep).float())


class DRO(PolicyLoss):
    """-(A log pi - beta / 2 (log r)^2): direct reward optimization (Richemond et al. 2024), for off-policy samples."""

    name: Literal["dro"] = "dro"
    """A squared penalty instead of a clip."""
    beta: float = Field(default=0.1, gt=0)
    """Weight of the squared penalty."""

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`."""
        return SOFT_RANGE

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token."""
        values = -(batch.advantages * batch.log_probs - self.beta / 2 * batch.log_ratio.square())
        return TokenLoss(values, batch.weights.new_zeros(len(batch.weights)))
