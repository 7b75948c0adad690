"""What a policy loss is computed from: flat token tensors, all [tokens], and sums that do not care how a batch is cut.

Weights are folded in before a batch is split: each token's weight is its share of the mean over the whole optimizer
batch, so adding up parts gives the same loss and gradient however the batch is cut. A part never cuts a turn in two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """`log_probs` and `entropy` carry gradient; the rest is data."""

    log_probs: Tensor
    entropy: Tensor
    old_log_probs: Tensor
    """log pi_old of the sampled tokens: what the engine reported."""
    advantages: Tensor
    weights: Tensor
    turns: Tensor
    """Number of the turn each token belongs to, from 0."""
    scale: Tensor | None = None
    """What the policy loss is multiplied by; None is 1."""
    reference_log_probs: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """log r = log pi - log pi_old."""
        return self.log_probs - self.old_log_probs

    def turn_mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over each turn's tokens, given back to each of its tokens."""
        count = int(self.turns.max()) + 1 if len(self.turns) else 0
        sums = values.new_zeros(count).index_add(0, self.turns, values)
        sizes = torch.bincount(self.turns, minlength=count).to(values.dtype)
        return (sums / sizes).index_select(0, self.turns)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A loss by token, and which tokens its bound kept from having an effect (1 or 0)."""

    values: Tensor
    clipped: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` to differentiate, and weighted sums for the log: they add up over parts of a batch."""

    total: Tensor
    sums: dict[str, float]
