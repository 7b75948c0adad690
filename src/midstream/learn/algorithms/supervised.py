"""Supervised objectives: imitation of selected trajectories, preference pairs, distillation from a teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from midstream.learn.algorithms.base import Aggregation, Algorithm, KLConfig, OutputKind
from midstream.learn.algorithms.outcome import Advantages, Groups, Outcome, TurnOutcome
from midstream.learn.losses import LossConfig
from midstream.learn.losses.ratio import ReinforceLoss


class Imitate(Algorithm):
    """Cross-entropy on the tokens of selected trajectories, -log pi, averaged over them: rejection-sampling fine-tuning
    (RAFT, Dong et al. 2023). Selects trajectories with a reward of at least `at_least`; with `best`, only the best of
    each group, the first of equals."""

    name: Literal["imitate"] = "imitate"
    """Supervised fine-tuning on the policy's own best trajectories."""
    at_least: float = 1.0
    """Minimum reward of a selected trajectory."""
    best: bool = False
    """Select at most one trajectory per group."""
    loss: LossConfig = ReinforceLoss()
    """The policy loss."""
    aggregation: Aggregation = "sum"
    """How token losses are averaged: advantages already include the mean over the selected tokens."""

    by_reward: ClassVar[bool] = False
    rewards_as_given: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        chosen = {id(outcome) for group in groups for outcome in self._chosen(group)}
        tokens = sum(outcome.tokens for group in groups for outcome in group if id(outcome) in chosen)
        return [
            [[1 / tokens if tokens and id(outcome) in chosen else 0.0] * len(outcome.turns) for outcome in group]
            for group in groups
        ]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """Return `chosen`, the number of selected trajectories."""
        return {"chosen": float(sum(len(self._chosen(group)) for group in groups))}

    def _chosen(self, group: Sequence[Outcome]) -> list[Outcome]:
        good = [outcome for outcome in group if outcome.reward >= self.at_least]
        return sorted(good, key=lambda outcome: -outcome.reward)[:1] if self.best else good


class _Pair(NamedTuple):
    better: Outcome
    worse: Outcome


class DPO(Algorithm):
    """Direct preference optimization (Rafailov et al. 2023) on pairs of a group's trajectories, preferring the higher
    reward: -log sigmoid(beta (d(better) - d(worse))), d = log pi - log pi_ref of all trainable tokens of a trajectory,
    averaged over pairs. It is computed as the advantage with the same gradient at the current weights: beta
    sigmoid(-margin) for each token of the better trajectory, minus that for each token of the worse. A batch therefore
    allows only one update."""

    name: Literal["dpo"] = "dpo"
    """Direct preference optimization."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of the log-ratio to the reference."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """One pair per group, or every pair with different rewards."""
    loss: LossConfig = ReinforceLoss()
    """The policy loss."""
    aggregation: Aggregation = "sum"
    """How token losses are averaged: advantages already include the mean over pairs."""
    kl: KLConfig = KLConfig(coef=0.0)
    """The KL term; its `reference` is also the reference of the pairs."""

    required_outputs: ClassVar[frozenset[OutputKind]] = frozenset({"policy", "reference"})
    one_update: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        pairs = list(self._pairs(groups))
        advantage: dict[int, float] = {}
        for pair in pairs:
            share = self.beta / (1 + math.exp(self._margin(pair))) / len(pairs)
            advantage[id(pair.better)] = advantage.get(id(pair.better), 0.0) + share
            advantage[id(pair.worse)] = advantage.get(id(pair.worse), 0.0) - share
        return [[[advantage.get(id(o), 0.0)] * len(o.turns) for o in group] for group in groups]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """Return the loss, its margin, the share of correctly ranked pairs, and the number of pairs."""
        margins = [self._margin(pair) for pair in self._pairs(groups)]
        if not margins:
            return {"pairs": 0.0}
        return {
            "pairs": float(len(margins)),
            "pair_loss": sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins),
            "pair_margin": sum(margins) / len(margins),
            "pair_accuracy": sum(margin > 0 for margin in margins) / len(margins),
        }

    def _pairs(self, groups: Groups) -> Iterator[_Pair]:
        for group in groups:
            ranked = sorted(group, key=lambda outcome: -outcome.reward)
            if self.pairs == "best_worst":
                ranked = [ranked[0], ranked[-1]] if len(ranked) > 1 else []
            for rank, better in enumerate(ranked):
                for worse in ranked[rank + 1 :]:
                    if better.reward > worse.reward:
                        yield _Pair(better, worse)

    def _margin(self, pair: _Pair) -> float:
        margin = self.beta * (_drift(pair.better) - _drift(pair.worse))
        return min(max(margin, -500.0), 500.0)  # within the range of exp; the sigmoid is flat long before


class Distill(Algorithm):
    """On-policy distillation (Agarwal et al. 2024): the teacher, set by `kl.reference`, scores every token sampled by
    the policy, A_t = log pi_teacher - log pi, so the expected loss is the reverse KL. Rewards are not used."""

    name: Literal["distill"] = "distill"
    """On-policy distillation from a teacher."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged."""
    kl: KLConfig = KLConfig(coef=0.0)
    """The KL term; its `reference` is the teacher."""

    by_reward: ClassVar[bool] = False
    required_outputs: ClassVar[frozenset[OutputKind]] = frozenset({"policy", "reference"})

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`, by token."""
        return [[[[-d for d in _drifts(turn)] for turn in o.turns] for o in group] for group in groups]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """Return `teacher_kl`, the mean of log pi - log pi_teacher per token."""
        drifts = [d for group in groups for outcome in group for turn in outcome.turns for d in _drifts(turn)]
        return {"teacher_kl": sum(drifts) / len(drifts)} if drifts else {}


def _drifts(turn: TurnOutcome) -> list[float]:
    return [own - other for own, other in zip(turn.outputs.log_probs, turn.outputs.reference, strict=True)]


def _drift(outcome: Outcome) -> float:
    return sum(d for turn in outcome.turns for d in _drifts(turn))
