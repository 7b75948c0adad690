"""The training objective: policy loss, KL term and entropy bonus, weighted per token."""

from __future__ import annotations

import torch

from midstream.learn.algorithms.base import Algorithm
from midstream.learn.losses.kl import kl_estimate
from midstream.learn.losses.tokens import Loss, TokenBatch


def objective(batch: TokenBatch, algorithm: Algorithm) -> Loss:
    """Return sum w s L + beta sum w KL - c sum w H over the tokens of `batch`, where s is the scale of the policy
    loss."""
    token = algorithm.loss.loss(batch)
    weights = batch.weights if batch.scale is None else batch.weights * batch.scale
    total = (weights * token.values).sum()
    sums = {"policy_loss": float(total.detach())}
    if batch.reference_log_probs is not None:
        kl = (batch.weights * kl_estimate(algorithm.kl.estimator, batch.log_probs, batch.reference_log_probs)).sum()
        if algorithm.kl.placement == "loss":
            total = total + algorithm.kl.coef * kl
        sums["kl"] = float(kl.detach())
    if algorithm.entropy_coef:
        total = total - algorithm.entropy_coef * (batch.weights * batch.entropy).sum()
    with torch.no_grad():
        sums["entropy"] = float((batch.weights * batch.entropy).sum())
        ratio = batch.log_ratio.exp()
        sums["ratio"] = float((batch.weights * ratio).sum())
        sums["ratio_squared"] = float((batch.weights * ratio.square()).sum())
        sums["clipped"] = float((batch.weights * token.clipped).sum())
        sums["sampler_kl"] = float((batch.weights * -batch.log_ratio).sum())
        sums["loss"] = float(total)
    return Loss(total, sums)
