"""Importance weights and entropy masks: what the policy loss of each token is multiplied by, known before an update and
the same however the batch is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from midstream.learn.algorithms.base import Algorithm, CorrectionConfig
from midstream.learn.algorithms.outcome import Place, Reading
from midstream.learn.batch import LearningBatch, LearningTurn

LARGEST_LOG_RATIO = 20.0


def corrected(batch: LearningBatch, readings: Mapping[Place, Reading], algorithm: Algorithm) -> LearningBatch:
    """`batch` with `correction` and `top_entropy` of `algorithm` put into its turns, by what was read of them.

    Counts: `sampler_kl` and `max:log_ratio` to the sampler, which the losses' own ratio is not taken to then,
    `importance_masked` (share of tokens whose weight came to 0), `importance_mean`, and what the learner's
    policy is to the sampler's by token: `importance_ess` = (sum rho)^2 / (n sum rho^2), the effective sample size as a
    share, and `importance_chi2` = mean rho^2 - 1."""
    turns, counts = list(batch.turns), dict(batch.counts)
    if not turns:
        return batch
    if algorithm.correction.level != "none":
        turns, found = _weighed(turns, readings, algorithm.correction)
        counts |= found
    if algorithm.top_entropy < 1:
        turns, counts["entropy_threshold"] = _most_uncertain(turns, readings, algorithm.top_entropy)
    return replace(batch, turns=turns, counts=counts)


def importance(log_ratios: Sequence[float], config: CorrectionConfig) -> np.ndarray:
    """The weights of a turn's tokens from log pi_old - log pi_sampler of each."""
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


def _weighed(
    turns: Sequence[LearningTurn], readings: Mapping[Place, Reading], config: CorrectionConfig
) -> tuple[list[LearningTurn], dict[str, float]]:
    made: list[LearningTurn] = []
    weights: list[float] = []
    ratios: list[float] = []
    for turn in turns:
        own = tuple(readings[turn.place].log_probs)
        log_ratios = [now - then for now, then in zip(own, turn.old_log_probs, strict=True)]
        scale = tuple(float(weight) for weight in importance(log_ratios, config))
        made.append(replace(turn, old_log_probs=own, scale=scale))
        weights += scale
        ratios += log_ratios
    rho = np.exp(np.clip(np.array(ratios), -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    return made, {
        "sampler_kl": -float(np.mean(ratios)),
        "max:log_ratio": float(np.abs(ratios).max()),
        "importance_mean": float(np.mean(weights)),
        "importance_masked": float(np.mean([weight == 0 for weight in weights])),
        "importance_ess": float(rho.sum() ** 2 / (len(rho) * (rho**2).sum())),
        "importance_chi2": float((rho**2).mean() - 1),
    }


def _most_uncertain(
    turns: Sequence[LearningTurn], readings: Mapping[Place, Reading], share: float
) -> tuple[list[LearningTurn], float]:
    """Scale 0 for tokens whose entropy is below the batch's (1 - share)-quantile, and that quantile."""
    everything = np.concatenate([np.asarray(reading.entropy) for reading in readings.values()])
    threshold = float(np.quantile(everything, 1 - share))
    made: list[LearningTurn] = []
    for turn in turns:
        own = np.asarray(readings[turn.place].entropy)
        before = np.asarray(turn.scale or (1.0,) * len(own))
        made.append(replace(turn, scale=tuple((before * (own >= threshold)).tolist())))
    return made, threshold
