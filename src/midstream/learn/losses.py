"""Policy losses: pure functions of flat token tensors, all [tokens].

Weights are folded in before a batch is split: each token's weight is its share of the mean over the whole optimizer
batch, so summing parts gives the same loss and gradient however the batch is cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midstream.learn.algorithms.base import PolicyLoss


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a loss is computed from. `log_probs` and `entropy` carry gradient; the rest is data."""

    log_probs: Tensor
    entropy: Tensor
    old_log_probs: Tensor
    """log pi_old of the sampled tokens: what the engine reported."""
    advantages: Tensor
    weights: Tensor
    reference_log_probs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` to differentiate, and weighted sums for the log: they add up over parts of a batch."""

    total: Tensor
    sums: dict[str, float]


def policy_loss(batch: TokenBatch, config: PolicyLoss) -> Loss:
    """-sum w min(r A, clip(r) A) + beta sum w k3 - c sum w H, with r = exp(log pi - log pi_old)."""
    log_ratio = batch.log_probs - batch.old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    total = -(batch.weights * surrogate).sum()
    sums = {"policy_loss": float(total.detach())}
    if batch.reference_log_probs is not None:
        kl = k3(batch.log_probs, batch.reference_log_probs)
        weighted = (batch.weights * kl).sum()
        total = total + config.kl.coef * weighted
        sums["kl"] = float(weighted.detach())
    if config.entropy_coef:
        total = total - config.entropy_coef * (batch.weights * batch.entropy).sum()
    with torch.no_grad():
        sums["entropy"] = float((batch.weights * batch.entropy).sum())
        sums["clipped"] = float((batch.weights * (surrogate < ratio * batch.advantages)).sum())
        sums["sampler_kl"] = float((batch.weights * (-log_ratio)).sum())
        sums["loss"] = float(total)
    return Loss(total, sums)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log pi_ref - log pi: unbiased for KL(pi || pi_ref) on samples of pi, never negative
    (Schulman 2020)."""
    difference = reference - log_probs
    return difference.exp() - difference - 1
