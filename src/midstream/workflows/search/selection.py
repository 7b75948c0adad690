"""Which candidate a search develops next: AFlow's soft mixture, UCT, beam, or random."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

SelectionName = Literal["soft_mixture", "uct", "beam", "random"]


class Scored(Protocol):
    """What a selection needs of a candidate. Numbers grow with the order of creation; the first has no parent."""

    @property
    def number(self) -> int: ...

    @property
    def parent(self) -> int | None: ...

    @property
    def score(self) -> float | None:
        """Mean score on validation, 0 to 1; None when it was invalid or not evaluated."""
        ...


class Selection(Protocol):
    """Chooses the parent of the next candidate. `candidates` holds at least one with a score."""

    def select(self, candidates: Sequence[Scored], rng: random.Random) -> int:
        """The number of the parent."""
        ...


def soft_mixture(scores: Sequence[float], alpha: float = 0.2, lambda_: float = 0.3) -> list[float]:
    """P(i) = lambda / n + (1 - lambda) softmax_i(alpha (100 s_i - max_j 100 s_j)), for scores from 0 to 1.

    Source: AFlow (Zhang et al. 2024, arXiv 2410.10762), equation 3, with its constants."""
    scaled = [100 * score for score in scores]
    weights = [math.exp(alpha * (one - max(scaled))) for one in scaled]
    return [lambda_ / len(scores) + (1 - lambda_) * weight / sum(weights) for weight in weights]


@dataclass(frozen=True, slots=True)
class SoftMixture:
    """AFlow's selection among the first candidate and the `sample - 1` best others."""

    alpha: float = 0.2
    lambda_: float = 0.3
    sample: int = 4

    def select(self, candidates: Sequence[Scored], rng: random.Random) -> int:
        first, *others = _scored(candidates)
        best = sorted(others, key=lambda one: (-_score(one), one.number))[: self.sample - 1]
        shown = sorted((first, *best), key=lambda one: (-_score(one), one.number))
        weights = soft_mixture([_score(one) for one in shown], self.alpha, self.lambda_)
        return rng.choices(shown, weights)[0].number


@dataclass(frozen=True, slots=True)
class UCT:
    """UCT (Kocsis and Szepesvari 2006) on the tree of candidates. From the root, a node with fewer than `width`
    children is developed; else the child of the largest value + c sqrt(ln visits(parent) / visits(child)) is entered.

    The visits of a node are the candidates in its subtree; its value is their best score, because a search wants the
    best workflow and not a good average."""

    c: float = 0.35
    width: int = 3

    def select(self, candidates: Sequence[Scored], rng: random.Random) -> int:
        known = _scored(candidates)
        children: dict[int, list[Scored]] = {one.number: [] for one in known}
        for one in known[1:]:
            if one.parent in children:
                children[one.parent].append(one)
        visits: dict[int, int] = {}
        value: dict[int, float] = {}
        for one in reversed(known):  # children have larger numbers than their parents
            below = children[one.number]
            visits[one.number] = 1 + sum(visits[child.number] for child in below)
            value[one.number] = max([_score(one), *(value[child.number] for child in below)])
        # Invalid children count as tries, so that a node whose children are all invalid is not tried for ever.
        tries = {number: 0 for number in children}
        for one in candidates:
            if one.parent in tries:
                tries[one.parent] += 1
        at = known[0].number
        while children[at] and tries[at] >= self.width:
            total = visits[at]
            at = max(
                children[at],
                key=lambda child: (
                    value[child.number] + self.c * math.sqrt(math.log(total) / visits[child.number]),
                    -child.number,
                ),
            ).number
        return at


@dataclass(frozen=True, slots=True)
class Beam:
    """Develops the `width` best candidates, the one with the fewest children first."""

    width: int = 3

    def select(self, candidates: Sequence[Scored], rng: random.Random) -> int:
        best = sorted(_scored(candidates), key=lambda one: (-_score(one), one.number))[: self.width]
        tries = {one.number: sum(other.parent == one.number for other in candidates) for one in best}
        return min(best, key=lambda one: (tries[one.number], -_score(one), one.number)).number


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any candidate with a score, with equal probability: the baseline of the other strategies."""

    def select(self, candidates: Sequence[Scored], rng: random.Random) -> int:
        return rng.choice(_scored(candidates)).number


def selection(name: SelectionName, alpha: float = 0.2, lambda_: float = 0.3) -> Selection:
    """The selection of that name. `alpha` and `lambda_` are those of the soft mixture."""
    strategies: dict[str, Selection] = {
        "soft_mixture": SoftMixture(alpha, lambda_),
        "uct": UCT(),
        "beam": Beam(),
        "random": Uniform(),
    }
    return strategies[name]


def _scored(candidates: Sequence[Scored]) -> list[Scored]:
    return [one for one in candidates if one.score is not None]


def _score(one: Scored) -> float:
    return 0.0 if one.score is None else one.score
