"""`TaskMix`: several task sets in fixed ratios, evenly interleaved instead of drawn at random.

The source of index i, and the position within that source, depend only on i. The schedule is periodic; within a period
each source's share is spread by earliest deadline first, so that over any window the count of a source differs from its
ratio by less than 2 tasks, and over a whole period not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from midstream.core.types import Task
from midstream.tasks.taskset import TaskSet, empty_split, known_split

_FINEST_SHARE = 1000
"""Shares are rounded to thousandths unless they are simpler fractions; positive shares stay positive."""


class TaskMix(TaskSet):
    """Sources with ratios, such as `[(calculate, 2), (facts, 1)]`. A source without tasks in a split is left out
    there."""

    def __init__(self, sources: Sequence[tuple[TaskSet, float]]) -> None:
        if not sources:
            raise ValueError("a mix needs at least one source")
        if any(not (ratio > 0 and math.isfinite(ratio)) for _, ratio in sources):
            raise ValueError("every ratio must be above 0")
        self.sources = tuple(sources)
        self.name = "+".join(taskset.name for taskset, _ in sources)
        self.kinds = tuple(dict.fromkeys(kind for taskset, _ in sources for kind in taskset.kinds))
        self._schedules: dict[str, _Schedule] = {}

    def size(self, split: str) -> int | None:
        """Return None if any source is unbounded, else the number of tasks before one repeats."""
        sizes = [(taskset.size(split), ratio) for taskset, ratio in self.sources]
        filled = [size for size, _ in sizes if size != 0]
        if not filled:
            return 0
        finite = [size for size in filled if size is not None]
        return self._schedule(split).before_repeat(finite) if len(finite) == len(filled) else None

    def get(self, split: str, index: int) -> Task:
        schedule = self._schedule(split)
        source, position = schedule.at(index)
        return schedule.tasksets[source].get(split, position)

    def _schedule(self, split: str) -> _Schedule:
        if split not in self._schedules:
            filled = [(taskset, ratio) for taskset, ratio in self.sources if taskset.size(known_split(split)) != 0]
            if not filled:
                raise empty_split(self, split)
            self._schedules[split] = _Schedule(filled)
        return self._schedules[split]


class _Schedule:
    def __init__(self, sources: Sequence[tuple[TaskSet, float]]) -> None:
        self.tasksets = [taskset for taskset, _ in sources]
        self.weights = whole_weights([ratio for _, ratio in sources])
        self.order = spread(self.weights)
        seen = [0] * len(self.weights)
        self.rank: list[int] = []
        """For each position, how often its source occurred earlier in the period."""
        for source in self.order:
            self.rank.append(seen[source])
            seen[source] += 1

    def at(self, index: int) -> tuple[int, int]:
        """Return `(source, position within it)` of an index."""
        if index < 0:
            raise ValueError(f"a task index starts at 0, not {index}")
        period, place = divmod(index, len(self.order))
        source = self.order[place]
        return source, period * self.weights[source] + self.rank[place]

    def before_repeat(self, sizes: Sequence[int]) -> int:
        """Return the first index at which a source of one of these sizes repeats."""

        def first_repeat(source: int) -> int:
            period, rank = divmod(sizes[source], self.weights[source])
            places = [place for place, other in enumerate(self.order) if other == source]
            return period * len(self.order) + places[rank]

        return min(first_repeat(source) for source in range(len(sizes)))


def whole_weights(ratios: Sequence[float]) -> list[int]:
    """Return small whole numbers in the given ratios: `[0.5, 0.25]` gives `[2, 1]`."""
    exact = [Fraction(str(ratio)) for ratio in ratios]
    shares = [ratio / sum(exact) for ratio in exact]
    common = math.lcm(*(share.denominator for share in shares))
    if common > _FINEST_SHARE:
        return _reduced([max(1, round(share * _FINEST_SHARE)) for share in shares])
    return _reduced([int(share * common) for share in shares])


def spread(weights: Sequence[int]) -> list[int]:
    """Return one period: source i occurs `weights[i]` times, its j-th time within `[j/w, (j+1)/w]` of the period
    (EDF)."""
    period = sum(weights)
    taken = [0] * len(weights)
    order: list[int] = []
    for place in range(period):
        released = [i for i, w in enumerate(weights) if taken[i] < w and taken[i] * period < (place + 1) * w]
        # The deadline of task j of a source is the end of its interval, (j + 1) * period / w.
        chosen = min(released, key=lambda i: (Fraction((taken[i] + 1) * period, weights[i]), i))
        taken[chosen] += 1
        order.append(chosen)
    return order


def _reduced(weights: list[int]) -> list[int]:
    divisor = math.gcd(*weights)
    return [weight // divisor for weight in weights]
