"""Sampler / learner mismatch: measures the difference between the engine's and the learner's log-probabilities of
sampled tokens, and decides when to correct for it.

Every training step measures it before the first update. The forward pass of the update provides the values, so
measuring is free. It covers the tokens sampled by the weights that the step begins with; where there are none, those of
the policy version closest to them, and d then also holds what the policy has moved since. With
d = log pi_learner - log pi_sampler per token and rho = exp(d), the metrics are:

- `mismatch/mean_abs`: mean |d|
- `mismatch/k3`: mean (rho - 1 - d), the k3 estimate of KL(sampler || learner) (Schulman 2020)
- `mismatch/ess`: (sum rho)^2 / (n sum rho^2), the effective sample size as a share
- `mismatch/p999`: the 99.9th percentile of |d|
- `mismatch/clipped`: the share of tokens outside the loss's clip range before any update
- `mismatch/tokens`: n
- `mismatch/staleness`: updates between the version that sampled these tokens and the step's weights

With several minibatches and no correction, n counts only the first minibatch: the weights have changed before the
others.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from midstream.learn.algorithms.base import Algorithm, CorrectionConfig
from midstream.learn.algorithms.outcome import TurnKey
from midstream.learn.data.batch import LearningBatch, LearningTurn
from midstream.learn.losses.base import PolicyLoss
from midstream.learn.losses.correction import apply_correction, importance
from midstream.learn.model.log_probs import Scored, TokenSequence

LARGEST_LOG_RATIO = 20.0


class OwnLogProbs:
    """The learner's log-probabilities of a training step's turns, under the weights at the start of the step."""

    def __init__(self) -> None:
        self._log_probs: dict[TurnKey, tuple[float, ...]] = {}
        self._entropies: dict[TurnKey, tuple[float, ...]] = {}
        self._turns: dict[TurnKey, LearningTurn] = {}

    def record(self, turns: Sequence[LearningTurn], scored: Scored) -> None:
        """Record the learner's outputs for `turns`. `turns` must hold the sampler's log-probabilities."""
        sizes = [len(turn.old_log_probs) for turn in turns]
        log_probs, entropies = scored.log_probs.detach().split(sizes), scored.entropy.detach().split(sizes)
        for turn, own, entropy in zip(turns, log_probs, entropies, strict=True):
            self._turns[turn.key], self._log_probs[turn.key] = turn, tuple(own.tolist())
            self._entropies[turn.key] = tuple(entropy.tolist())

    def __contains__(self, batch: LearningBatch) -> bool:
        return all(turn.key in self._log_probs for turn in batch.turns)

    def correct(self, batch: LearningBatch, config: CorrectionConfig) -> LearningBatch:
        """Return `batch` with ratios relative to these log-probabilities, and importance weights by `config`."""
        turns = apply_correction(batch.turns, [self._log_probs[turn.key] for turn in batch.turns], config)
        return replace(batch, turns=turns)

    def differences(self, version: int | None = None, of: Container[TokenSequence] | None = None) -> list[np.ndarray]:
        """Return d of each token, by turn: for turns of policy `version` when given, and for sequences in `of` when
        given."""
        return [
            np.array(self._log_probs[key]) - np.array(turn.old_log_probs)
            for key, turn in self._turns.items()
            if (version is None or turn.version == version) and (of is None or turn.sequence in of)
        ]

    def closest_version(self, version: int) -> int | None:
        """The policy version that sampled any of the turns and is closest to `version`; None when there is no turn."""
        sampled_by = {turn.version for turn in self._turns.values()}
        return min(sampled_by, key=lambda other: (abs(other - version), -other), default=None)

    def sharpness(self) -> list[np.ndarray]:
        """Return log p + H of each token, by turn: the derivative of its log-probability with respect to the log of a
        common logit scale, such as an inverse temperature."""
        return [np.array(self._log_probs[key]) + np.array(self._entropies[key]) for key in self._turns]


def mismatch(differences: Sequence[np.ndarray], loss: PolicyLoss) -> dict[str, float]:
    """Return the metrics listed in the module docstring from d by turn; empty when there is no token."""
    if not differences:
        return {}
    d = np.concatenate(differences)
    rho = _ratios(d)
    return {
        "mismatch/mean_abs": float(np.abs(d).mean()),
        "mismatch/k3": float((rho - 1 - d).mean()),
        "mismatch/ess": float(rho.sum() ** 2 / (len(rho) * (rho**2).sum())),
        "mismatch/p999": float(np.quantile(np.abs(d), 0.999)),
        "mismatch/clipped": clipped(differences, loss),
        "mismatch/tokens": float(len(d)),
    }


def clipped(differences: Sequence[np.ndarray], loss: PolicyLoss) -> float:
    """Return the share of tokens whose log-ratio is outside the loss's clip range. Losses bounded by turn use the
    turn's mean."""
    bounds = loss.clip_range()
    if bounds is None:
        return 0.0
    by_token = [np.full_like(d, d.mean()) if loss.ratio_by_turn else d for d in differences]
    log_ratios = np.concatenate(by_token)
    return float(((log_ratios < bounds[0]) | (log_ratios > bounds[1])).mean())


def correction_for(algorithm: Algorithm, correcting: bool) -> CorrectionConfig:
    """Return the correction of a training step: `auto` becomes `token` while `correcting`, else `none`."""
    config = algorithm.correction
    if config.level != "auto":
        return config
    return config.model_copy(update={"level": "token" if correcting else "none"})


def corrects_next(correcting: bool, found: float | None, config: CorrectionConfig) -> bool:
    """Return whether the next training step of an `auto` correction corrects.

    `found` is the share of tokens outside the clip range, None when it was not measured. Correction stops at half the
    share at which it starts, to avoid flickering.
    """
    if config.level != "auto" or found is None:
        return correcting and config.level == "auto"
    return found > config.threshold * (0.5 if correcting else 1.0)


def importance_metrics(differences: Sequence[np.ndarray], config: CorrectionConfig) -> dict[str, float]:
    """Return the metrics of a corrected training step, over all its tokens, old ones included.

    They are `sampler_kl`, `max:log_ratio`, `importance_masked` (share of tokens with weight 0), `importance_mean`,
    `importance_ess` and `importance_chi2` = mean rho^2 - 1. They replace the ratios of the loss, which no longer show
    the distance to the sampler.
    """
    if not differences:
        return {}
    d = np.concatenate(differences)
    rho = _ratios(d)
    weights = np.concatenate([importance(own, config) for own in differences])
    return {
        "sampler_kl": -float(d.mean()),
        "max:log_ratio": float(np.abs(d).max()),
        "importance_mean": float(weights.mean()),
        "importance_masked": float((weights == 0).mean()),
        "importance_ess": float(rho.sum() ** 2 / (len(rho) * (rho**2).sum())),
        "importance_chi2": float((rho**2).mean() - 1),
    }


def _ratios(d: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(d, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
