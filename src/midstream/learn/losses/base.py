"""Base class of policy losses."""

from __future__ import annotations

from typing import ClassVar

from midstream.core.config import Config

SOFT_RANGE = (-0.2, 0.2)
"""Nominal clip range of losses that bound the ratio softly or not at all; PPO's usual epsilon."""


class PolicyLoss(Config):
    """A loss per token."""

    ratio_by_turn: ClassVar[bool] = False
    """Whether bounds apply to the mean log-ratio of a turn instead of each token's."""

    def clip_range(self) -> tuple[float, float] | None:
        """Return the bounds (low, high) of the unclipped log-ratio; None for a loss without a ratio."""
        return None
