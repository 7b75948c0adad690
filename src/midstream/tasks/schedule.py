"""`schedule` and `schedule_due`: jobs with durations, dependencies and shared resources; the order of starts matters.

Two workers share one oven. A job needs a worker, some also the oven, and starts after all jobs it depends on. Whenever
jobs are ready, the scheduler chooses which one starts; it cannot wait deliberately. The cost to minimise is the end of
the last job (`schedule`), or the sum of hours by which jobs end after they are due (`schedule_due`). Unbounded. The
minimum and maximum cost are found by exhaustive search (`schedule_search`); instances in which the order hardly matters
are left out. The split key is the instance without the names of its jobs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Self

from midstream.tasks.schedule_search import Objective, cost_range
from midstream.tasks.taskset import Draft, GeneratedTaskSet, TaskSet, split_of

WORKER, OVEN = "worker", "oven"
LIMITS = {WORKER: 2, OVEN: 1}
_NAMES = "abcdefghijklmnopqrstuvwxyz"
_LEAST_SPREAD = 3
"""Minimum difference between the maximum and the minimum cost."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job of an instance. `after` names the jobs it depends on."""

    name: str
    duration: int
    after: tuple[str, ...] = ()
    needs: Mapping[str, int] = field(default_factory=dict)
    """Units of each resource that it uses while it runs."""
    due: int | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """A scheduling problem, with the minimum and maximum cost over all choices."""

    jobs: tuple[Job, ...]
    limits: Mapping[str, int]
    objective: Objective
    best: int
    worst: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """Read an instance from `task.metadata["schedule"]`. Raises `KeyError` or `TypeError` for anything else."""
        jobs = tuple(Job(**{**job, "after": tuple(job["after"])}) for job in metadata["jobs"])
        return cls(jobs, metadata["limits"], metadata["objective"], metadata["best"], metadata["worst"])

    def cost(self, ends: Mapping[str, float]) -> float:
        """Return the cost of a schedule, given when each job ended."""
        if self.objective == "makespan":
            return max(ends.values())
        return sum(max(0.0, ends[job.name] - job.due) for job in self.jobs if job.due is not None)

    def to_end(self) -> dict[str, int]:
        """Return for each job the hours of the longest chain of jobs that begins with it."""
        found: dict[str, int] = {}
        for job in reversed(self.jobs):  # a job comes after those it depends on
            behind = (found[other.name] for other in self.jobs if job.name in other.after)
            found[job.name] = job.duration + max(behind, default=0)
        return found


def schedule(seed: int = 0) -> TaskSet:
    """The set `schedule`."""
    return GeneratedTaskSet("schedule", partial(_draw, objective="makespan"), seed)


def schedule_due(seed: int = 0) -> TaskSet:
    """The set `schedule_due`."""
    return GeneratedTaskSet("schedule_due", partial(_draw, objective="tardiness"), seed)


def as_draft(jobs: Sequence[Job], objective: Objective, key: str, entity: str) -> Draft | None:
    """Return the task of scheduling `jobs`, each listed after those it depends on; None if the order of starts hardly
    matters. `key` is the split key."""
    found = cost_range(jobs, LIMITS, objective)
    if found.worst - found.best < _LEAST_SPREAD:
        return None
    instance = Instance(tuple(jobs), LIMITS, objective, found.best, found.worst)
    return Draft(
        question=_question(instance),
        answer=str(found.best),
        key=key,
        entity=entity,
        metadata={"schedule": asdict(instance)},
    )


def _draw(rng: random.Random, split: str, objective: Objective) -> Draft:
    while True:
        jobs = _jobs(rng, rng.randint(5, 7), objective)
        shape = _shape(jobs)
        key = f"schedule/{objective}/{shape}"
        draft = as_draft(jobs, objective, key, entity=shape) if split_of(key) == split else None
        if draft is not None:
            return draft


def _jobs(rng: random.Random, count: int, objective: Objective) -> list[Job]:
    names = rng.sample(_NAMES, count)
    jobs: list[Job] = []
    for place, name in enumerate(names):
        # The first jobs have no dependencies, so that there is a choice from the start.
        after = rng.sample(names[:place], min(place, rng.choice((0, 1, 1, 2)))) if place >= 3 else []
        needs = {WORKER: 1} | ({OVEN: 1} if rng.random() < 0.3 else {})
        due = rng.randint(2, 12) if objective == "tardiness" else None
        jobs.append(Job(name, rng.randint(1, 6), tuple(sorted(after)), needs, due))
    return jobs


def _shape(jobs: Sequence[Job]) -> str:
    """Return the instance as text, without the names."""
    place = {job.name: str(at) for at, job in enumerate(jobs)}
    parts = (
        f"{job.duration}{'o' if OVEN in job.needs else ''}<{','.join(sorted(place[one] for one in job.after))}"
        f"{'' if job.due is None else f'@{job.due}'}"
        for job in jobs
    )
    return " ".join(parts)


def _question(instance: Instance) -> str:
    goals = {"makespan": "Finish all jobs as early as possible.", "tardiness": "Let no job end after it is due."}
    return "\n".join((goals[instance.objective], "Two workers share one oven.", *map(_line, instance.jobs)))


def _line(job: Job) -> str:
    parts: Sequence[tuple[bool, Callable[[], str]]] = (
        (True, lambda: f"{job.name} takes {job.duration} h"),
        (OVEN in job.needs, lambda: "needs the oven"),
        (bool(job.after), lambda: f"after {', '.join(job.after)}"),
        (job.due is not None, lambda: f"due at {job.due} h"),
    )
    return ", ".join(text() for applies, text in parts if applies)
