"""What every policy loss tells of itself beside its formula."""

from __future__ import annotations

from typing import ClassVar

from midstream.core.config import Config

SOFT_RANGE = (-0.2, 0.2)
"""Stands in for the clip range of losses that use a ratio and bound it softly or not at all; PPO's usual epsilon."""


class PolicyLoss(Config):
    """A loss by token."""

    ratio_by_turn: ClassVar[bool] = False
    """Whether its bounds act on the mean log-ratio of a turn instead of each token's."""

    def clip_range(self) -> tuple[float, float] | None:
        """The log-ratios (low, high) between which the loss is not clipped; None for a loss without a ratio."""
        return None
