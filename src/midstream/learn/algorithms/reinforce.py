"""REINFORCE (Williams 1992): A_i = R_i - b, with the batch mean as baseline or none. The plain yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from midstream.learn.algorithms.base import PolicyLoss


class Reinforce(PolicyLoss):
    """REINFORCE on the trajectory's outcome. On fresh samples the clipped ratio is 1 and the gradient is A grad log
    pi."""

    name: Literal["reinforce"] = "reinforce"
    """REINFORCE."""
    baseline: Literal["batch", "none"] = "batch"
    """What is taken from each reward."""

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """Advantages of each trajectory, by group."""
        baseline = float(np.mean([reward for group in groups for reward in group])) if self.baseline == "batch" else 0.0
        return [[reward - baseline for reward in group] for group in groups]
