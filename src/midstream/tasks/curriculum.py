"""Which training task is attempted next: in the order of the set, by how often each was solved, or from easy to hard.

Everything drawn follows from the seed, the step and `Progress`, which is kept in checkpoints: a run that is resumed
draws what it would have drawn. What is drawn from the splits `val` and `test` has nothing to do with this.
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
"""Tasks that are looked at for one that fits; more where the set has more."""
REMEMBERED = 10_000
"""Tasks whose pass rates are kept, those drawn last; a set without end would fill any memory."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A task that was drawn before: its place in the order of the set, and the pass rates of its last groups."""

    place: int
    rates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far drawing has come: the next place in the order of the set, and by id the tasks seen, the one drawn last at
    the end."""

    position: int = 0
    seen: Mapping[str, Seen] = field(default_factory=dict)


class Curriculum(Config, ABC):
    """A way to choose training tasks."""

    @abstractmethod
    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """The next `count` tasks, and how far drawing has come with them. `drawn` are the ids of those that were drawn
        for the same step already."""

    def observed(self, progress: Progress, pass_rates: Mapping[str, float]) -> Progress:
        """`progress` once the share of successful attempts at some tasks, by id, is known."""
        return progress

    def metrics(self, progress: Progress, step: int) -> dict[str, float]:
        """What the log of `step` tells of it."""
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
    """Tasks that were attempted before are in one of four pools by their pass rate (prime-rl's difficulty pools). A
    share of the draws goes to each pool; the rest, and the share of a pool that is empty, follows the order of the set,
    in which solved tasks are passed over."""

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
    """A task is solved, and not easy any more, from this pass rate on."""
    groups: int = Field(default=2, ge=1)
    """The pass rate of a task is the mean over its last so many groups."""

    @model_validator(mode="after")
    def _consistent(self) -> DifficultyPools:
        if self.hard + self.normal + self.easy + self.solved > 1 + 1e-9:
            raise ValueError("the shares hard, normal, easy and solved are more than 1 together")
        if not self.hard_below <= self.easy_above <= self.solved_at:
            raise ValueError("the pass rates must be in the order hard_below, easy_above, solved_at")
        return self

    def pool_of(self, seen: Seen) -> str:
        """`hard`, `normal`, `easy` or `solved`; empty for a task of which nothing is known yet."""
        if not seen.rates:
            return ""
        rate = sum(seen.rates) / len(seen.rates)
        if rate >= self.solved_at:
            return "solved"
        return "hard" if rate < self.hard_below else "easy" if rate > self.easy_above else "normal"

    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """As `Curriculum.draw`. No task is drawn twice for a step while there is another."""
        pools, taken, chosen = self._pools(progress), set(drawn), list[Task]()
        seen, position, solved = dict(progress.seen), progress.position, set(pools["solved"])
        for number in range(len(drawn), len(drawn) + count):
            pool = self._pool_at(unit_interval(seed, "pool", step, number))
            members = sorted(progress.seen[name].place for name in pools.get(pool, ()) if name not in taken)
            if members:
                place = members[derive_seed(seed, "member", step, number) % len(members)]
            else:
                place = _next(tasks, position, lambda task: task.id not in taken and task.id not in solved)
                if place is None:  # all the others are solved, or were drawn
                    place = _next(tasks, position, lambda task: task.id not in taken)
                place = position if place is None else place
                position = place + 1
            task = tasks.get("train", place)
            chosen.append(task)
            taken.add(task.id)
            seen[task.id] = seen.pop(task.id, Seen(place))  # at the end now
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
        """The pool that a number from 0 to 1 falls into; empty for the order of the set."""
        for pool in POOLS:
            share: float = getattr(self, pool)
            if number < share:
                return pool
            number -= share
        return ""


class Ramp(Curriculum):
    """From easy to hard: the order of the set, in which tasks more difficult than a ceiling are passed over. The
    ceiling rises in a line. A task's difficulty is the number `difficulty` of its metadata, else how many tools it
    `needs`."""

    name: Literal["ramp"] = "ramp"
    """Draws by difficulty."""
    start: float = Field(allow_inf_nan=False)
    """The ceiling at the first step."""
    end: float = Field(allow_inf_nan=False)
    """The ceiling at step `steps` and after it."""
    steps: int = Field(default=100, ge=1)
    """Steps over which it rises."""

    @model_validator(mode="after")
    def _rising(self) -> Ramp:
        if self.start > self.end:
            raise ValueError("start is above end: a ramp goes from easy to hard")
        return self

    def ceiling(self, step: int) -> float:
        """The most difficult that a task of this step (from 1) may be."""
        return self.end if step >= self.steps else self.start + (self.end - self.start) * (step - 1) / (self.steps - 1)

    def draw(
        self, tasks: TaskSet, progress: Progress, count: int, *, seed: int, step: int, drawn: Sequence[str] = ()
    ) -> tuple[list[Task], Progress]:
        """As `Curriculum.draw`. Raises `TaskError` when no task is easy enough, or one does not say how difficult it
        is."""
        chosen, position, ceiling = list[Task](), progress.position, self.ceiling(step)
        for _ in range(count):
            place = _next(tasks, position, lambda task: difficulty_of(task) <= ceiling)
            if place is None:
                raise TaskError(
                    f"no task of '{tasks.name}' is as easy as tasks.curriculum allows at step {step}: {ceiling:g}",
                    "raise tasks.curriculum.start",
                )
            chosen.append(tasks.get("train", place))
            position = place + 1
        return chosen, replace(progress, position=position)


CurriculumConfig = Annotated[InOrder | DifficultyPools | Ramp, Field(discriminator="name")]


def difficulty_of(task: Task) -> float:
    """`difficulty` in the task's metadata, else the number of tools it `needs`; `TaskError` when it has neither."""
    given, needs = task.metadata.get("difficulty"), task.metadata.get("needs")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    if given is None and isinstance(needs, list | tuple):
        return float(len(needs))
    raise TaskError(
        f"the task '{task.id}' does not say how difficult it is",
        "give tasks a number as metadata 'difficulty', or set tasks.curriculum.name=none",
    )


def _next(tasks: TaskSet, position: int, fits: Callable[[Task], bool]) -> int | None:
    """The first place from `position` on of a training task that `fits`; None when none does as far as one looks."""
    places = range(position, position + max(tasks.size("train") or 0, LOOK_AHEAD))
    return next((place for place in places if fits(tasks.get("train", place))), None)
