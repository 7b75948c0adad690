"""Which ready node starts next: first come first served, or a policy with recorded probabilities.

A policy is π(v | s) of the run's state s over the ready nodes v, with infeasible ones masked: a node is infeasible
while a resource it needs is taken. Each choice is journaled with its log-probability, normalised over what was
feasible, and with the mask, so that a learner can recompute it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from midstream.plans.instances import Instance
from midstream.plans.states import NodeState


@dataclass(frozen=True, slots=True)
class ReadyNode:
    """One node a policy can choose."""

    path: str
    handler: str
    role: str | None
    resources: Mapping[str, int]
    attempt: int
    dependents: int
    """Nodes that wait for it."""


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """What a policy sees of a run."""

    run: str
    ready: Sequence[ReadyNode]
    feasible: Sequence[bool]
    """Which of them may start now; at least one may."""
    running: Sequence[str]
    """Paths of nodes that run."""
    succeeded: int
    free: Mapping[str, int]
    """Units of each limited resource that are free; `slots` are places for nodes."""
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The index of the node that starts, and the natural logarithm of its probability over the feasible nodes."""

    index: int
    log_prob: float
    metadata: Mapping[str, Any] | None = None
    """Journaled with the choice, such as the uid of the model call that made it."""


class SchedulingPolicy(Protocol):
    """Chooses among ready nodes."""

    name: str

    async def choose(self, state: SchedulerState) -> Choice: ...


class ScoredPolicy:
    """π(v | s) ∝ exp(score(v, s) / temperature) over the feasible nodes; seed 004, §4.1, with several parents."""

    def __init__(
        self,
        score: Callable[[ReadyNode, SchedulerState], float],
        *,
        temperature: float = 1.0,
        seed: int = 0,
        name: str = "scored",
    ) -> None:
        self.name = name
        self._score, self._temperature, self._random = score, temperature, random.Random(seed)

    async def choose(self, state: SchedulerState) -> Choice:
        scores = [
            self._score(node, state) / self._temperature if feasible else -math.inf
            for node, feasible in zip(state.ready, state.feasible, strict=True)
        ]
        log_probs = masked_log_softmax(scores)
        drawn, index = self._random.random(), 0
        for index, log_prob in enumerate(log_probs):
            drawn -= math.exp(log_prob)
            if drawn < 0 and state.feasible[index]:
                return Choice(index, log_prob)
        index = max(at for at, feasible in enumerate(state.feasible) if feasible)
        return Choice(index, log_probs[index])


def uniform_policy(seed: int = 0) -> ScoredPolicy:
    """Every feasible node with the same probability."""
    return ScoredPolicy(lambda node, state: 0.0, seed=seed, name="uniform")


def masked_log_softmax(scores: Sequence[float]) -> list[float]:
    """log softmax over the finite scores; -inf stays -inf."""
    highest = max(scores)
    total = math.log(sum(math.exp(score - highest) for score in scores)) + highest
    return [score - total for score in scores]


class ReadyQueue:
    """Ready nodes in the order they became ready; those with the same needs are feasible together."""

    def __init__(self) -> None:
        self._by_needs: dict[tuple[tuple[str, int], ...], deque[tuple[int, Instance]]] = {}
        self._numbers = itertools.count()

    def push(self, one: Instance) -> None:
        needs = tuple(sorted(one.node.resources.items()))
        self._by_needs.setdefault(needs, deque()).append((next(self._numbers), one))

    def pop(self, fits: Callable[[Mapping[str, int]], bool]) -> Instance | None:
        """Remove and return the first node whose needs fit; None when there is none."""
        heads: list[tuple[int, Any]] = []
        for needs, waiting in self._by_needs.items():
            while waiting and waiting[0][1].state is not NodeState.READY:
                waiting.popleft()
            if waiting:
                heapq.heappush(heads, (waiting[0][0], needs))
        while heads:
            _, needs = heapq.heappop(heads)
            if fits(dict(needs)):
                return self._by_needs[needs].popleft()[1]
        return None

    @property
    def wanted(self) -> list[Mapping[str, int]]:
        """The different needs of the nodes that wait."""
        return [dict(needs) for needs, waiting in self._by_needs.items() if waiting]

    def remove(self, one: Instance) -> None:
        needs = tuple(sorted(one.node.resources.items()))
        waiting = self._by_needs[needs]
        self._by_needs[needs] = deque(pair for pair in waiting if pair[1] is not one)

    def __iter__(self) -> Iterator[Instance]:
        pairs = [pair for waiting in self._by_needs.values() for pair in waiting]
        return iter(one for _, one in sorted(pairs, key=lambda pair: pair[0]) if one.state is NodeState.READY)


class Limits:
    """Units of limited resources, shared by the runs of an executor. `slots` are places for nodes."""

    SLOTS = "slots"

    def __init__(self, slots: int, resources: Mapping[str, int]) -> None:
        self.total = {self.SLOTS: slots, **resources}
        self.free = dict(self.total)
        self._waiting: dict[object, tuple[Sequence[Mapping[str, int]], Callable[[], None]]] = {}

    def fits(self, needs: Mapping[str, int]) -> bool:
        return self.free[self.SLOTS] > 0 and all(self.free.get(name, count) >= count for name, count in needs.items())

    def take(self, needs: Mapping[str, int]) -> None:
        self._add(needs, -1)

    def give(self, needs: Mapping[str, int]) -> None:
        """Return units, and wake runs with a node that fits now, those that wait longest first."""
        self._add(needs, 1)
        left = self.free[self.SLOTS]
        for waiter, (wanted, wake) in list(self._waiting.items()):
            if left <= 0:
                break
            if any(self.fits(one) for one in wanted):
                left -= 1
                del self._waiting[waiter]
                wake()

    def wait(self, waiter: object, wanted: Sequence[Mapping[str, int]], wake: Callable[[], None]) -> None:
        """Call `wake` once when one of the needs `wanted` fits. A waiter keeps its place in the line."""
        self._waiting[waiter] = (wanted, wake)

    def forget(self, waiter: object) -> None:
        self._waiting.pop(waiter, None)

    def _add(self, needs: Mapping[str, int], sign: int) -> None:
        self.free[self.SLOTS] += sign
        for name, count in needs.items():
            if name in self.free:
                self.free[name] += sign * count
