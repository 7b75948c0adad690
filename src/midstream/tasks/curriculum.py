"""Chooses the next training task: in the set's order, by observed pass rates, from easy to hard, or kind by kind.

Draws depend only on the seed, the step and `Progress`, which is saved in checkpoints: a resumed run draws the same
tasks. Draws from the splits `val` and `test` are unaffected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.core.errors import TaskError
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import Task
from midstream.tasks.taskset import TaskSet

POOLS = ("hard", "normal", "easy", "solved")
LOOK_AHEAD = 1000
"""Tasks examined to find a suitable one; more if the set has more."""
REMEMBERED = 10_000
"""Tasks whose pass rates are stored, the most recently drawn; an unbounded set would exhaust memory."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A task drawn before: its position in the set's order, and the pass rates of its last groups."""

    place: int
    rates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of drawing: the next position in the set's order, and the tasks seen, by id, the most recently drawn
    last."""

    position: int = 0
    seen: Mapping[str, Seen] = field(default_factory=dict)


class Curriculum(Config, ABC):
    """A method of choosing training tasks."""

    @abstractmethod
    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """Draw the next `count` tasks; return them with the new progress. `drawn` are the ids of tasks already drawn
        for the same step."""

    def observed(self, progress: Progress, pass_rates: Mapping[str, float]) -> Progress:
        """Return `progress` updated with the pass rates of some tasks, by id."""
        return progress

    def metrics(self, progress: Progress, step: int) -> dict[str, float]:
        """Return the metrics to log at `step`."""
        return {}


class InOrder(Curriculum):
    """The order of the task set."""

    name: Literal["none"] = "none"
    """No curriculum."""

    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """As `Curriculum.draw`."""
        places = range(progress.position, progress.position + count)
        return [tasks.get("train", place) for place in places], replace(progress, position=places.stop)


class DifficultyPools(Curriculum):
    """Pools of tasks by pass rate, as in prime-rl's difficulty pools. Each of the four pools gets a share of the draws;
    the rest, and the shares of empty pools, follow the set's order, skipping solved tasks."""

    name: Literal["pools"] = "pools"
    """Draws by observed success."""
    hard: float = Field(default=0.1, ge=0, le=1)
    """Share of draws from tasks with a pass rate below `hard_below`."""
    normal: float = Field(default=0.4, ge=0, le=1)
    """Share of draws from tasks in between."""
    easy: float = Field(default=0.05, ge=0, le=1)
    """Share of draws from tasks with a pass rate above `easy_above`."""
    solved: float = Field(default=0.0, ge=0, le=1)
    """Share of draws from tasks with a pass rate of at least `solved_at`."""
    hard_below: float = Field(default=0.25, ge=0, le=1)
    """A task is hard below this pass rate."""
    easy_above: float = Field(default=0.75, ge=0, le=1)
    """A task is easy above this pass rate."""
    solved_at: float = Field(default=1.0, gt=0, le=1)
    """A task is solved, and no longer easy, from this pass rate on."""
    groups: int = Field(default=2, ge=1)
    """A task's pass rate is the mean over this many of its last groups."""

    @model_validator(mode="after")
    def _consistent(self) -> DifficultyPools:
        if self.hard + self.normal + self.easy + self.solved > 1 + 1e-9:
            raise ValueError("the shares hard, normal, easy and solved add up to more than 1")
        if not self.hard_below <= self.easy_above <= self.solved_at:
            raise ValueError("the pass rates must be in the order hard_below, easy_above, solved_at")
        return self

    def pool_of(self, seen: Seen) -> str:
        """Return `hard`, `normal`, `easy` or `solved`; empty for a task without a known pass rate."""
        if not seen.rates:
            return ""
        rate = sum(seen.rates) / len(seen.rates)
        if rate >= self.solved_at:
            return "solved"
        return "hard" if rate < self.hard_below else "easy" if rate > self.easy_above else "normal"

    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """As `Curriculum.draw`. Draws no task twice for a step while others are left."""
        pools, taken, chosen = self._pools(progress), set(drawn), list[Task]()
        seen, position, solved = dict(progress.seen), progress.position, set(pools["solved"])
        for number in range(len(drawn), len(drawn) + count):
            pool = self._pool_at(unit_interval(seed, "pool", step, number))
            members = sorted(progress.seen[name].place for name in pools.get(pool, ()) if name not in taken)
            if members:
                place = members[derive_seed(seed, "member", step, number) % len(members)]
            else:
                place = _next(tasks, position, lambda task: task.id not in taken and task.id not in solved)
                if place is None:  # all others are solved or already drawn
                    place = _next(tasks, position, lambda task: task.id not in taken)
                place = position if place is None else place
                position = place + 1
            task = tasks.get("train", place)
            chosen.append(task)
            taken.add(task.id)
            seen[task.id] = seen.pop(task.id, Seen(place))  # moves it to the end
        return chosen, Progress(position, dict(list(seen.items())[-REMEMBERED:]))

    def observed(self, progress: Progress, pass_rates: Mapping[str, float]) -> Progress:
        """As `Curriculum.observed`."""
        seen = dict(progress.seen)
        for name, rate in pass_rates.items():
            if name in seen:
                seen[name] = replace(seen[name], rates=(*seen[name].rates, rate)[-self.groups :])
        return replace(progress, seen=seen)

    def metrics(self, progress: Progress, step: int) -> dict[str, float]:
        """The number of tasks in each pool."""
        return {f"pool/{pool}": float(len(members)) for pool, members in self._pools(progress).items()}

    def _pools(self, progress: Progress) -> dict[str, list[str]]:
        pools: dict[str, list[str]] = {pool: [] for pool in POOLS}
        for name, seen in progress.seen.items():
            if pool := self.pool_of(seen):
                pools[pool].append(name)
        return pools

    def _pool_at(self, number: float) -> str:
        """Return the pool selected by a number from 0 to 1; empty for the set's order."""
        for pool in POOLS:
            share: float = getattr(self, pool)
            if number < share:
                return pool
            number -= share
        return ""


class Ramp(Curriculum):
    """From easy to hard: the set's order, skipping tasks more difficult than a ceiling that rises linearly. A task's
    difficulty is the number `difficulty` in its metadata, else the number of tools it `needs`."""

    name: Literal["ramp"] = "ramp"
    """Draws by difficulty."""
    start: float = Field(allow_inf_nan=False)
    """Ceiling at the first step."""
    end: float = Field(allow_inf_nan=False)
    """Ceiling from step `steps` on."""
    steps: int = Field(default=100, ge=1)
    """Steps over which the ceiling rises."""

    @model_validator(mode="after")
    def _rising(self) -> Ramp:
        if self.start > self.end:
            raise ValueError("start is above end: a ramp goes from easy to hard")
        return self

    def ceiling(self, step: int) -> float:
        """Return the highest difficulty of tasks at this step (from 1)."""
        return self.end if step >= self.steps else self.start + (self.end - self.start) * (step - 1) / (self.steps - 1)

    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """As `Curriculum.draw`. Raises `TaskError` if no task is easy enough, or a task has no difficulty."""
        chosen, position, ceiling = list[Task](), progress.position, self.ceiling(step)
        for _ in range(count):
            place = _next(tasks, position, lambda task: difficulty_of(task) <= ceiling)
            if place is None:
                raise TaskError(
                    f"'{tasks.name}' has no task as easy as tasks.curriculum allows at step {step}: {ceiling:g}",
                    "raise tasks.curriculum.start",
                )
            chosen.append(tasks.get("train", place))
            position = place + 1
        return chosen, replace(progress, position=position)


class Kinds(Curriculum):
    """One kind of problem after the other: the next kind of `order` is opened when the open ones succeed. Tasks of open
    kinds are drawn in the set's order. Kinds that are not in `order` are open from the start."""

    name: Literal["kinds"] = "kinds"
    """Draws by kind."""
    order: tuple[str, ...] = Field(min_length=1)
    """Kinds from the first to the last."""
    by: str = "kind"
    """Field that holds a task's kind: `kind`, or a field of its metadata, such as `problem_type`."""
    at: float = Field(default=0.7, gt=0, le=1)
    """Mean pass rate of a kind's last groups at which the next kind is opened."""
    groups: int = Field(default=8, ge=1)
    """Number of last groups of a kind over which the mean is taken; as many are required."""

    def kind_of(self, task: Task) -> str:
        """Return the kind of a task."""
        return str(task.kind if self.by == "kind" else task.metadata.get(self.by))

    def open(self, tasks: TaskSet, progress: Progress) -> tuple[str, ...]:
        """Return the kinds of `order` that are open."""
        rates: dict[str, list[float]] = {}
        for seen in list(progress.seen.values())[-LOOK_AHEAD:]:
            rates.setdefault(self.kind_of(tasks.get("train", seen.place)), []).extend(seen.rates)
        for place, kind in enumerate(self.order):
            last = rates.get(kind, [])[-self.groups :]
            if len(last) < self.groups or sum(last) / len(last) < self.at:
                return self.order[: place + 1]
        return self.order

    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """As `Curriculum.draw`. Raises `TaskError` when the set has no task of an open kind."""
        closed = set(self.order) - set(self.open(tasks, progress))
        chosen, seen, position = list[Task](), dict(progress.seen), progress.position
        for _ in range(count):
            place = _next(tasks, position, lambda task: self.kind_of(task) not in closed)
            if place is None:
                raise TaskError(
                    f"'{tasks.name}' has no task of the kinds that tasks.curriculum opens first: {self.order[0]}",
                    f"is tasks.curriculum.by='{self.by}' right?",
                )
            task = tasks.get("train", place)
            chosen.append(task)
            position = place + 1
            seen[task.id] = replace(seen.pop(task.id, Seen(place)), place=place)  # moves it to the end
        return chosen, Progress(position, dict(list(seen.items())[-REMEMBERED:]))

    def observed(self, progress: Progress, pass_rates: Mapping[str, float]) -> Progress:
        """As `Curriculum.observed`."""
        seen = dict(progress.seen)
        for name, rate in pass_rates.items():
            if name in seen:
                seen[name] = replace(seen[name], rates=(rate,))
        return replace(progress, seen=seen)


CurriculumConfig = Annotated[InOrder | DifficultyPools | Ramp | Kinds, Field(discriminator="name")]


def difficulty_of(task: Task) -> float:
    """Return `difficulty` from the task's metadata, else the number of tools it `needs`; `TaskError` if both are
    absent."""
    difficulty, needs = task.metadata.get("difficulty"), task.metadata.get("needs")
    if isinstance(difficulty, int | float) and not isinstance(difficulty, bool):
        return float(difficulty)
    if difficulty is None and isinstance(needs, list | tuple):
        return float(len(needs))
    raise TaskError(
        f"the task '{task.id}' has no difficulty",
        "give tasks a number as metadata 'difficulty', or set tasks.curriculum.name=none",
    )


def _next(tasks: TaskSet, position: int, fits: Callable[[Task], bool]) -> int | None:
    """Return the first position from `position` on of a training task that `fits`; None if none is found in range."""
    places = range(position, position + max(tasks.size("train") or 0, LOOK_AHEAD))
    return next((place for place in places if fits(tasks.get("train", place))), None)
