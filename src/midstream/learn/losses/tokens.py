"""Input and output types of policy losses: flat token tensors, all [tokens].

Each token's weight is its share of the mean over the whole optimizer batch, computed before the batch is split. Sums
over parts therefore give the same loss and gradient for any split. A part never splits a turn.

Losses use methods of tensors only: configs name them, and must import without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token tensors of a pass. `log_probs` and `entropy` carry gradient; the others are data."""

    log_probs: Tensor
    entropy: Tensor
    old_log_probs: Tensor
    """log pi_old of the sampled tokens, as reported by the engine."""
    advantages: Tensor
    weights: Tensor
    turns: Tensor
    """Index of the turn of each token, from 0."""
    scale: Tensor | None = None
    """Factor of the policy loss; None means 1."""
    reference_log_probs: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """log r = log pi - log pi_old."""
        return self.log_probs - self.old_log_probs

    def turn_mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over each turn, expanded to its tokens."""
        count = int(self.turns.max()) + 1 if len(self.turns) else 0
        sums = values.new_zeros(count).index_add(0, self.turns, values)
        sizes = self.turns.bincount(minlength=count).to(values.dtype)
        return (sums / sizes).index_select(0, self.turns)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Loss per token, and whether its bound removed the token's effect (1 or 0)."""

    values: Tensor
    clipped: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` to differentiate, and weighted sums for the log, which add up over parts of a batch."""

    total: Tensor
    sums: dict[str, float]
