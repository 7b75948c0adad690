"""Exhaustive search over the orders in which a scheduler can start jobs: the minimum and maximum cost.

Schedules are non-delay schedules: a job that can start never waits while no other is chosen. The optimum with
deliberate idle time may be lower. Exponential in the number of jobs: for up to about eight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from midstream.tasks.schedule import Job

Objective = Literal["makespan", "tardiness"]
_Running = tuple[tuple[int, int], ...]
"""End and index of each running job, sorted."""


class Costs(NamedTuple):
    """The minimum and maximum cost."""

    best: int
    worst: int


def cost_range(jobs: Sequence[Job], limits: Mapping[str, int], objective: Objective) -> Costs:
    """Return the minimum and maximum cost over all orders of starting `jobs`.

    `makespan` is the end of the last job, `tardiness` the sum over jobs of max(0, end - due). Raises `ValueError` if a
    job can never start."""
    index = {job.name: at for at, job in enumerate(jobs)}
    parents = [frozenset(index[name] for name in job.after) for job in jobs]
    everything = frozenset(range(len(jobs)))

    def feasible(done: frozenset[int], running: _Running) -> list[int]:
        busy = {at for _, at in running}
        free = dict(limits)
        for at in busy:
            for name, count in jobs[at].needs.items():
                free[name] -= count
        return [
            at
            for at in everything - done - busy
            if parents[at] <= done and all(free[name] >= count for name, count in jobs[at].needs.items())
        ]

    def cost_of(at: int, end: int) -> int:
        due = jobs[at].due
        return max(0, end - due) if objective == "tardiness" and due is not None else 0

    @cache
    def rest(now: int, done: frozenset[int], running: _Running) -> Costs:
        """Return the cost of jobs that end after `now`; for the makespan, the end itself."""
        if done == everything:
            return Costs(now, now) if objective == "makespan" else Costs(0, 0)
        if options := feasible(done, running):
            found = [
                rest(now, done, tuple(sorted((*running, (now + jobs[at].duration, at))))) for at in sorted(options)
            ]
            return Costs(min(one.best for one in found), max(one.worst for one in found))
        if not running:
            raise ValueError("a job can never start: it needs more of a resource than there is, or waits for itself")
        end = running[0][0]
        ended = frozenset(at for moment, at in running if moment == end)
        added = sum(cost_of(at, end) for at in ended)
        after = rest(end, done | ended, tuple(one for one in running if one[0] > end))
        return Costs(after.best + added, after.worst + added)

    return rest(0, frozenset(), ())
