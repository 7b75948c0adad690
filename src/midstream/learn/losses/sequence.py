"""Losses on one ratio per turn: the geometric mean of its tokens' ratios."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from midstream.learn.losses.base import PolicyLoss
from midstream.learn.losses.tokens import TokenBatch, TokenLoss

LARGEST_LOG_RATIO = 10.0


class GSPO(PolicyLoss):
    """-min(s A, clip(s) A) with s = exp(mean over the turn of log r): GSPO (Zheng et al. 2025). With `level: token` the
    value is the same, and each token's gradient flows only through its own probability: s_t = sg[s] pi / sg[pi]. Its
    bounds are much closer than PPO's. Use it with `sequence_mean`."""

    name: Literal["gspo"] = "gspo"
    """Group sequence policy optimization."""
    level: Literal["sequence", "token"] = "sequence"
    """Level of the gradient."""
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    """Lower bound of the ratio is 1 - this."""
    clip_high: float = Field(default=4e-4, gt=0)
    """Upper bound of the ratio is 1 + this."""

    ratio_by_turn: ClassVar[bool] = True

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`."""
        return math.log1p(-self.clip_low), math.log1p(self.clip_high)

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token: all tokens of a turn have the turn's value."""
        mean = batch.turn_mean(batch.log_ratio)
        if self.level == "token":
            mean = mean.detach() + batch.log_probs - batch.log_probs.detach()
        ratio = mean.clamp(max=LARGEST_LOG_RATIO).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        values = -(ratio * batch.advantages).minimum(clipped * batch.advantages)
        return TokenLoss(values, (values != -ratio * batch.advantages).float())


class GMPO(PolicyLoss):
    """-A exp(mean over the turn of the clipped log r): GMPO (Zhao et al. 2025). Before the mean, each token's log r is
    clipped to [-low, high] on the side toward which the advantage pushes. Use it with `sequence_mean`."""

    name: Literal["gmpo"] = "gmpo"
    """Geometric-mean policy optimization."""
    clip_low: float = Field(default=0.4, gt=0)
    """Lower bound of log r is minus this."""
    clip_high: float = Field(default=0.4, gt=0)
    """Upper bound of log r."""

    def clip_range(self) -> tuple[float, float]:
        """As `PolicyLoss.clip_range`."""
        return -self.clip_low, self.clip_high

    def loss(self, batch: TokenBatch) -> TokenLoss:
        """Compute the loss per token: all tokens of a turn have the turn's value."""
        log_ratio, sign = batch.log_ratio, batch.advantages.sign()
        clipped = log_ratio.clamp(-self.clip_low, self.clip_high)
        bounded = sign * (sign * log_ratio).minimum(sign * clipped)
        return TokenLoss(
            -batch.advantages * batch.turn_mean(bounded).exp(), (bounded.detach() != log_ratio.detach()).float()
        )
