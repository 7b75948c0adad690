"""Group-relative advantages: GRPO (Shao et al. 2024, arXiv 2402.03300) and Flow-GRPO (Li et al. 2025, arXiv
2510.05592).

A_i = (R_i - mean(R)) / (s + eps) over the rewards of one task's trajectories. What s is differs across the field, so it
is spelled out: `std: group` with `ddof` 1 and `eps` 1e-6 is verl's, with `eps` 1e-4 TRL's, with `ddof` 0 rLLM's; `std:
none` is prime-rl's and Dr. GRPO's; `std: batch` divides by the root mean square of R_i - mean(R) over the whole batch.

Statistics are always over trajectories, never over turns: a long trajectory does not weigh more in its own baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from midstream.learn.algorithms.base import Aggregation, PolicyLoss


class _GroupRelative(PolicyLoss):
    std: Literal["group", "batch", "none"] = "group"
    """What the centred reward is divided by."""
    ddof: Literal[0, 1] = 1
    """Degrees of freedom taken from a group's standard deviation."""
    eps: float = Field(default=1e-6, ge=0)
    """Added to the divisor."""

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """Advantages of each trajectory, by group. A group whose rewards are all equal gets zeros."""
        centred = [np.asarray(group, dtype=np.float64) - np.mean(group) for group in groups]
        centred = [np.where(np.ptp(group) == 0, 0.0, c) for group, c in zip(groups, centred, strict=True)]
        if self.std == "batch":
            everyone = np.concatenate(centred) if centred else np.zeros(1)
            divisors = [math.sqrt(float(np.mean(everyone**2))) + self.eps] * len(groups)
        elif self.std == "group":
            divisors = [float(np.std(g, ddof=self.ddof)) + self.eps if len(g) > self.ddof else 1.0 for g in groups]
        else:
            divisors = [1.0] * len(groups)
        return [(c / d).tolist() if d > 0 else c.tolist() for c, d in zip(centred, divisors, strict=True)]


class GRPO(_GroupRelative):
    """GRPO with the token mean over the batch that DAPO (Yu et al. 2025) made usual."""

    name: Literal["grpo"] = "grpo"
    """Group Relative Policy Optimization."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged; see PolicyLoss."""


class FlowGRPO(_GroupRelative):
    """Flow-GRPO: the trajectory's outcome is the advantage of every trainable turn in it; the mean is over
    trajectories, turns, tokens."""

    name: Literal["flow_grpo"] = "flow_grpo"
    """Flow-based Group Refined Policy Optimization."""
