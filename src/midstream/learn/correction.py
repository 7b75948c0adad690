"""Importance weights and entropy masks: per-token factors of the policy loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from midstream.learn.algorithms.base import CorrectionConfig
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.batch import LearningBatch, LearningTurn

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


def corrected(
    turns: Sequence[LearningTurn], own: Sequence[Sequence[float]], config: CorrectionConfig
) -> list[LearningTurn]:
    """Return `turns` with importance weights, and with ratios relative to the learner.

    `own` holds the learner's log-probabilities by turn. The weights are multiplied into the existing scale.
    """
    made: list[LearningTurn] = []
    for turn, now in zip(turns, own, strict=True):
        weights = importance(np.asarray(now) - np.asarray(turn.old_log_probs), config)
        scale = weights * np.asarray(turn.scale) if turn.scale else weights
        made.append(replace(turn, old_log_probs=tuple(now), scale=tuple(scale.tolist())))
    return made


def most_uncertain(batch: LearningBatch, readings: Mapping[TurnKey, PolicyOutputs], share: float) -> LearningBatch:
    """Set the scale to 0 for tokens whose entropy is below the (1 - share)-quantile over all tokens of `readings`. Adds
    that quantile to the counts as `entropy_threshold`."""
    if share >= 1 or not batch.turns:
        return batch
    everything = np.concatenate([np.asarray(reading.entropy) for reading in readings.values()])
    threshold = float(np.quantile(everything, 1 - share))
    made: list[LearningTurn] = []
    for turn in batch.turns:
        own = np.asarray(readings[turn.place].entropy)
        before = np.asarray(turn.scale or (1.0,) * len(own))
        made.append(replace(turn, scale=tuple((before * (own >= threshold)).tolist())))
    return replace(batch, turns=made, counts={**batch.counts, "entropy_threshold": threshold})
