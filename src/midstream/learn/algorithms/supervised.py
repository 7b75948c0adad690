"""Learning from what is known to be good: chosen trajectories, pairs of them, or a teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from midstream.learn.algorithms.base import Aggregation, Algorithm, KLConfig, Reads
from midstream.learn.algorithms.outcome import Advantages, Groups, Outcome, TurnOutcome
from midstream.learn.losses import LossConfig
from midstream.learn.losses.ratio import ReinforceLoss


class Imitate(Algorithm):
    """Cross-entropy on the tokens of chosen trajectories, -log pi, averaged over them: rejection-sampling fine-tuning
    (RAFT, Dong et al. 2023). Chosen are those whose reward is at least `at_least`; with `best`, only the best of their
    group, the first of equals."""

    name: Literal["imitate"] = "imitate"
    """Supervised fine-tuning on the policy's own best."""
    at_least: float = 1.0
    """Reward from which a trajectory is chosen."""
    best: bool = False
    """Choose at most one of each group."""
    loss: LossConfig = ReinforceLoss()
    """The policy loss."""
    aggregation: Aggregation = "sum"
    """How token losses are averaged: advantages are shares of the mean over the chosen tokens already."""

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
        """`chosen`: how many."""
        return {"chosen": float(sum(len(self._chosen(group)) for group in groups))}

    def _chosen(self, group: Sequence[Outcome]) -> list[Outcome]:
        good = [outcome for outcome in group if outcome.reward >= self.at_least]
        return sorted(good, key=lambda outcome: -outcome.reward)[:1] if self.best else good


class _Pair(NamedTuple):
    better: Outcome
    worse: Outcome


class DPO(Algorithm):
    """Direct preference optimization (Rafailov et al. 2023) on pairs of a group's trajectories, the one with the higher
    reward preferred: -log sigmoid(beta (d(better) - d(worse))), d = log pi - log pi_ref of all trainable tokens of a
    trajectory, averaged over pairs. It is learned as the advantage that gives its gradient at the current weights:
    beta sigmoid(-margin) to each token of the better, minus that to each of the worse. So a batch allows one update."""

    name: Literal["dpo"] = "dpo"
    """Direct preference optimization."""
    beta: float = Field(default=0.1, gt=0)
    """How much of the drift from the reference counts."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """One pair of each group, or every two whose rewards differ."""
    loss: LossConfig = ReinforceLoss()
    """The policy loss."""
    aggregation: Aggregation = "sum"
    """How token losses are averaged: advantages are shares of the mean over pairs already."""
    kl: KLConfig = KLConfig(coef=0.0)
    """The KL term; its `reference` is the pairs'."""

    reads: ClassVar[frozenset[Reads]] = frozenset({"policy", "reference"})
    one_update: ClassVar[bool] = True
    needs_group: ClassVar[bool] = True

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`."""
        pairs = list(self._pairs(groups))
        pulled: dict[int, float] = {}
        for pair in pairs:
            pull = self.beta / (1 + math.exp(self._margin(pair))) / len(pairs)
            pulled[id(pair.better)] = pulled.get(id(pair.better), 0.0) + pull
            pulled[id(pair.worse)] = pulled.get(id(pair.worse), 0.0) - pull
        return [[[pulled.get(id(o), 0.0)] * len(o.turns) for o in group] for group in groups]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """The loss itself, its margin, the share of pairs ranked right, and how many there are."""
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
            for place, better in enumerate(ranked):
                for worse in ranked[place + 1 :]:
                    if better.reward > worse.reward:
                        yield _Pair(better, worse)

    def _margin(self, pair: _Pair) -> float:
        margin = self.beta * (_drift(pair.better) - _drift(pair.worse))
        return min(max(margin, -500.0), 500.0)  # far inside what exp can hold; the sigmoid is flat long before


class Distill(Algorithm):
    """On-policy distillation (Agarwal et al. 2024): the teacher, which is `kl.reference`, judges every token that the
    policy sampled, A_t = log pi_teacher - log pi, so the expected loss is the reverse KL. Rewards play no part."""

    name: Literal["distill"] = "distill"
    """On-policy distillation from a teacher."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged."""
    kl: KLConfig = KLConfig(coef=0.0)
    """The KL term; its `reference` is the teacher."""

    by_reward: ClassVar[bool] = False
    reads: ClassVar[frozenset[Reads]] = frozenset({"policy", "reference"})

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`, by token."""
        return [[[[-d for d in _drifts(turn)] for turn in o.turns] for o in group] for group in groups]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """`teacher_kl`: the mean of log pi - log pi_teacher by token."""
        drifts = [d for group in groups for outcome in group for turn in outcome.turns for d in _drifts(turn)]
        return {"teacher_kl": sum(drifts) / len(drifts)} if drifts else {}


def _drifts(turn: TurnOutcome) -> list[float]:
    return [own - other for own, other in zip(turn.reading.log_probs, turn.reading.reference, strict=True)]


def _drift(outcome: Outcome) -> float:
    return sum(d for turn in outcome.turns for d in _drifts(turn))
