"""Sampler / learner mismatch: what the learner's log-probabilities of the sampled tokens differ by from those that the
engine reported, and when that difference is corrected for.

It is measured in every step, before the first update moves the weights; the update's own forward pass gives it, so
measuring costs nothing. What is measured are the tokens sampled by the weights that the step begins with; where there
are none, those of the policy version closest to them, and d then also holds what the policy has moved since. With
d = log pi_learner - log pi_sampler of each token and rho = exp(d), the step's row has:

- `mismatch/mean_abs`: mean |d|
- `mismatch/k3`: mean (rho - 1 - d), the k3 estimate of KL(sampler || learner) (Schulman 2020)
- `mismatch/ess`: (sum rho)^2 / (n sum rho^2), the effective sample size as a share
- `mismatch/p999`: the 99.9th percentile of |d|
- `mismatch/clipped`: the share of tokens outside the loss's clip range although the policy has not moved yet
- `mismatch/tokens`: n
- `mismatch/staleness`: updates between the version that sampled these tokens and the step's weights

With several minibatches and no correction, n counts the first minibatch alone: the others are read by moved weights."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from midstream.learn.algorithms.base import Algorithm, CorrectionConfig
from midstream.learn.algorithms.outcome import TurnKey
from midstream.learn.batch import LearningBatch, LearningTurn
from midstream.learn.correction import corrected, importance
from midstream.learn.log_probs import Scored, TokenSequence
from midstream.learn.losses.base import PolicyLoss

LARGEST_LOG_RATIO = 20.0


class OwnLogProbs:
    """The learner's log-probabilities of a step's turns, by the weights that the step begins with."""

    def __init__(self) -> None:
        self._of: dict[TurnKey, tuple[float, ...]] = {}
        self._entropies: dict[TurnKey, tuple[float, ...]] = {}
        self._turns: dict[TurnKey, LearningTurn] = {}

    def take(self, turns: Sequence[LearningTurn], scored: Scored) -> None:
        """What the learner says of `turns`, which are as they were sampled."""
        sizes = [len(turn.old_log_probs) for turn in turns]
        parts, entropies = scored.log_probs.detach().split(sizes), scored.entropy.detach().split(sizes)
        for turn, part, entropy in zip(turns, parts, entropies, strict=True):
            self._turns[turn.place], self._of[turn.place] = turn, tuple(part.tolist())
            self._entropies[turn.place] = tuple(entropy.tolist())

    def __contains__(self, batch: LearningBatch) -> bool:
        return all(turn.place in self._of for turn in batch.turns)

    def correct(self, batch: LearningBatch, config: CorrectionConfig) -> LearningBatch:
        """`batch` with its ratios taken to these log-probabilities, and importance weights by `config`."""
        turns = corrected(batch.turns, [self._of[turn.place] for turn in batch.turns], config)
        return replace(batch, turns=turns)

    def differences(self, version: int | None = None, of: Container[TokenSequence] | None = None) -> list[np.ndarray]:
        """By turn, d of each token; with `version`, of the turns that it sampled, with `of`, of these sequences."""
        return [
            np.array(self._of[place]) - np.array(turn.old_log_probs)
            for place, turn in self._turns.items()
            if (version is None or turn.version == version) and (of is None or turn.sequence in of)
        ]

    def closest_version(self, version: int) -> int | None:
        """The policy version that sampled any of the turns and is closest to `version`; None when there is no turn."""
        sampled_by = {turn.version for turn in self._turns.values()}
        return min(sampled_by, key=lambda other: (abs(other - version), -other), default=None)

    def sharpness(self) -> list[np.ndarray]:
        """By turn, log p + H of each token: what its log-probability gains where all logits are scaled up, by log
        scale, as a lower temperature does."""
        return [np.array(self._of[place]) + np.array(self._entropies[place]) for place in self._turns]


def mismatch(differences: Sequence[np.ndarray], loss: PolicyLoss) -> dict[str, float]:
    """The metrics of the module's docstring from d by turn; empty when there is no token."""
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
    """Share of tokens whose log-ratio, or their turn's mean where the loss bounds that, is outside its clip range."""
    bounds = loss.clip_range()
    if bounds is None:
        return 0.0
    by_token = [np.full_like(d, d.mean()) if loss.ratio_by_turn else d for d in differences]
    everyone = np.concatenate(by_token)
    return float(((everyone < bounds[0]) | (everyone > bounds[1])).mean())


def correction_for(algorithm: Algorithm, correcting: bool) -> CorrectionConfig:
    """The correction that a step applies: `auto` is `token` while `correcting`, else `none`."""
    config = algorithm.correction
    if config.level != "auto":
        return config
    return config.model_copy(update={"level": "token" if correcting else "none"})


def corrects_next(correcting: bool, found: float | None, config: CorrectionConfig) -> bool:
    """Whether the next step of an `auto` correction corrects, after one that `found` this share of tokens outside the
    clip range (None: it measured nothing). It ends at half of what it begins at, so that it does not flicker."""
    if config.level != "auto" or found is None:
        return correcting and config.level == "auto"
    return found > config.threshold * (0.5 if correcting else 1.0)


def importance_metrics(differences: Sequence[np.ndarray], config: CorrectionConfig) -> dict[str, float]:
    """What a corrected step reports of its weights and of the distance to the sampler, which its losses' own ratio no
    longer shows: `sampler_kl`, `max:log_ratio`, `importance_masked` (share of tokens with weight 0), `importance_mean`,
    `importance_ess` and `importance_chi2` = mean rho^2 - 1, over all its tokens, old ones too."""
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
