"""Importance weights and entropy masks: per-token factors of the policy loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from midstream.learn.algorithms.base import CorrectionConfig
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.data.batch import LearningBatch, LearningTurn

LARGEST_LOG_RATIO = 20.0


def importance(log_ratios: Sequence[float] | np.ndarray, config: CorrectionConfig) -> np.ndarray:
    """Return the importance weights of a turn's tokens from log pi_old - log pi_sampler; all 1 with the level
    `none`."""
    if config.level == "none":
        return np.ones(len(log_ratios))
    log_rho = np.asarray(log_ratios, dtype=np.float64)
    if config.level == "sequence":
        log_rho = np.full_like(log_rho, log_rho.sum())
    elif config.level == "sequence_mean":
        log_rho = np.full_like(log_rho, log_rho.mean())
    rho = np.exp(np.clip(log_rho, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    if config.rule == "truncate":
        return np.minimum(rho, config.high)
    if config.rule == "mask":
        return np.where(rho > config.high, 0.0, rho)
    return ((rho >= config.low) & (rho <= config.high)).astype(np.float64)


def apply_correction(
    turns: Sequence[LearningTurn], learner_log_probs: Sequence[Sequence[float]], config: CorrectionConfig
) -> list[LearningTurn]:
    """Return `turns` with importance weights, and with ratios relative to the learner.

    `learner_log_probs` holds the learner's log-probabilities by turn. The weights are multiplied into existing scales.
    """
    result: list[LearningTurn] = []
    for turn, log_probs in zip(turns, learner_log_probs, strict=True):
        weights = importance(np.asarray(log_probs) - np.asarray(turn.old_log_probs), config)
        scale = weights * np.asarray(turn.scale) if turn.scale else weights
        result.append(replace(turn, old_log_probs=tuple(log_probs), scale=tuple(scale.tolist())))
    return result


def keep_high_entropy(batch: LearningBatch, outputs: Mapping[TurnKey, PolicyOutputs], share: float) -> LearningBatch:
    """Set the scale to 0 for tokens whose entropy is below the (1 - share)-quantile over all tokens of `outputs`. Adds
    that quantile to the counts as `entropy_threshold`."""
    if share >= 1 or not batch.turns:
        return batch
    entropies = np.concatenate([np.asarray(output.entropy) for output in outputs.values()])
    threshold = float(np.quantile(entropies, 1 - share))
    result: list[LearningTurn] = []
    for turn in batch.turns:
        entropy = np.asarray(outputs[turn.key].entropy)
        scale = np.asarray(turn.scale or (1.0,) * len(entropy))
        result.append(replace(turn, scale=tuple((scale * (entropy >= threshold)).tolist())))
    return replace(batch, turns=result, counts={**batch.counts, "entropy_threshold": threshold})
