"""Estimates of KL(pi || pi_ref) per token, from log-probabilities of tokens sampled from pi (Schulman 2020,
"Approximating KL Divergence"), with d = log pi_ref - log pi:

- `k1` = -d: unbiased, noisy, may be negative. Its gradient as a loss has expectation zero: use it in the reward.
- `k2` = d^2 / 2: biased in value, but its gradient is an unbiased gradient of the KL.
- `k3` = exp(d) - d - 1: unbiased and never negative.
- `k1_st`, `k3_st`: the value of k1 or k3 with the gradient of k2 (straight-through).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "k1_st", "k3_st"]


def kl_estimate(name: Estimator, log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate `name` of each token. Gradients flow only into `log_probs`."""
    d = reference - log_probs
    if name == "k1":
        return -d
    if name == "k2":
        return d.square() / 2
    if name == "k3":
        return d.exp() - d - 1
    k2 = d.square() / 2
    value = kl_estimate("k1" if name == "k1_st" else "k3", log_probs, reference)
    return value.detach() + k2 - k2.detach()
