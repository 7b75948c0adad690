"""Metrics of a training step: its attempts, its updates, and how far sampler and learner differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.types import Trajectory
from midstream.learn.algorithms.base import CorrectionConfig
from midstream.learn.losses.base import PolicyLoss
from midstream.learn.losses.mismatch import OwnLogProbs, mismatch
from midstream.learn.model.learner import GRAD_NORM, merge_metrics
from midstream.learn.run.setup import TrainingContext
from midstream.rewards.judge import judge_agreement
from midstream.rewards.summary import describe, failure_reasons


def measured_mismatch(own: OwnLogProbs, version: int, loss: PolicyLoss) -> dict[str, float]:
    """Return the mismatch metrics of a step that began with policy `version`, over the tokens whose version is closest
    to it: samples of a sampler that lags behind are measured too."""
    measured = own.closest_version(version)
    if measured is None:
        return {}
    return {**mismatch(own.differences(measured), loss), "mismatch/staleness": float(abs(version - measured))}


def explain_correction(metrics: Mapping[str, float], config: CorrectionConfig, begins: bool) -> str:
    """Return a message on why an automatic correction starts or stops."""
    share, bound = metrics["mismatch/clipped"], config.threshold * (1.0 if begins else 0.5)
    stale = int(metrics["mismatch/staleness"])
    lag = f", {stale} update{'s' * (stale != 1)} after sampling," if stale else ""
    found = (
        f"sampler and learner differ{lag} by {metrics['mismatch/mean_abs']:.2g} on average, which alone moves "
        f"{share:.2%} of the tokens outside the clip range ({'above' if begins else 'at most'} {bound:.2%})"
    )
    if begins:
        return f"{found}: from the next step on, ratios are relative to the learner's own pass (algorithm.correction)"
    return f"{found}: from the next step on, ratios are relative to the sampler again (algorithm.correction)"


def attempt_metrics(context: TrainingContext, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Return metrics of the attempts: success in total and by kind, rewards, and reasons of failures."""
    successes = [context.reward.succeeded(t) for t in trajectories]
    kinds = sorted({t.task.kind for t in trajectories})
    by_kind = {k: [s for t, s in zip(trajectories, successes, strict=True) if t.task.kind == k] for k in kinds}
    return {
        "success": sum(successes) / len(successes),
        **describe(trajectories),
        **(
            {}
            if context.config.reward.judge is None
            else judge_agreement(trajectories, context.config.reward.judge.compare_with)
        ),
        "errors": failure_reasons(trajectories),
        **{f"success/{kind}": sum(values) / len(values) for kind, values in by_kind.items()},
    }


def learned_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return metrics of the updates: sums over tokens as means, None for values not measured."""
    sums = merge_metrics(updates)
    share = sums.get("weight") or 1.0
    averaged = ("entropy", "clipped", "sampler_kl", "kl", "value_loss", "value_clipped")
    means = {name: sums[name] / share for name in averaged if name in sums}
    if squared := sums.get("ratio_squared"):
        means["importance_ess"] = sums["ratio"] ** 2 / (share * squared)
        means["importance_chi2"] = squared / share - 1
    unscaled = ("loss", "policy_loss", GRAD_NORM, *(n for n in sums if n.startswith(f"{GRAD_NORM}/")), "max:log_ratio")
    return {
        **{name: sums[name] for name in unscaled if name in sums},
        **{"entropy": None, "kl": None, **means},
        "loss_tokens": sums.get("loss_tokens", 0.0),
        "computed_tokens": sums.get("computed_tokens", 0.0),
    }
