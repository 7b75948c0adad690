"""`TaskSet`: tasks by split and index, identical on every machine, so that a trainer resumes from an index.

Splits are determined by a hash of a task's subject (its split key), 80/10/10 over train, val and test: a growing set
never moves a task, and subjects of the test split never occur in train.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midstream.core.errors import TaskError, nearest
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import Task

SPLITS = ("train", "val", "test")


HELD_OUT = 0.1
"""Share of the tasks in `val`, and in `test`."""


def split_of(key: str, val: float = HELD_OUT, test: float = HELD_OUT) -> str:
    """Return the split of everything with this split key, independent of the seed. `val` and `test` are the shares of
    these splits. Tasks in `test` stay there when `test` grows."""
    position = unit_interval("split", key)
    return "test" if position >= 1 - test else "val" if position >= 1 - test - val else "train"


class TaskSet(ABC):
    """An ordered source of tasks. `kinds` are the values of `Task.kind` in it."""

    name: str
    kinds: tuple[str, ...]

    @abstractmethod
    def size(self, split: str) -> int | None:
        """Return the number of distinct tasks in the split; None if it is unbounded."""

    @abstractmethod
    def get(self, split: str, index: int) -> Task:
        """Return task number `index` (from 0) of the split. A finite split repeats after its last task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A question of a built-in set, before it becomes a task of a split.

    `demonstration` lists the tool calls that solve it, as `{"tool", "arguments"}`. `{1}` in a string argument stands
    for the value found by call 1: the text after " is " in a fact, without the final "." and " km2", or the
    calculator's result.
    """

    question: str
    answer: Any
    key: str
    """The split key."""
    entity: str
    demonstration: Sequence[Mapping[str, Any]] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def task(self, kind: str, split: str, task_id: str) -> Task:
        """The task, with `needs`, `entity` and `demonstration` in its metadata."""
        demonstration = [dict(call) for call in self.demonstration]
        needs = [call["tool"] for call in demonstration]
        metadata = {"needs": needs, "entity": self.entity, "demonstration": demonstration, **self.metadata}
        return Task(id=task_id, prompt=self.question, answer=self.answer, kind=kind, split=split, metadata=metadata)


class FiniteTaskSet(TaskSet):
    """A known, finite list of tasks. Each split is shuffled by `seed`; each task has its own split."""

    def __init__(self, name: str, tasks: Iterable[Task], seed: int = 0) -> None:
        self.name = name
        self._tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        for task in tasks:
            self._tasks[known_split(task.split)].append(task)
        for members in self._tasks.values():
            # Ordered by id, not by position: existing tasks keep their order when the set grows.
            members.sort(key=lambda task: derive_seed(name, seed, task.id))
        self.kinds = tuple(dict.fromkeys(task.kind for members in self._tasks.values() for task in members))

    @classmethod
    def from_drafts(cls, name: str, drafts: Iterable[Draft], seed: int = 0) -> FiniteTaskSet:
        """Create a built-in set: kind is its name, splits from the drafts' keys, ids from the questions."""

        def task(draft: Draft) -> Task:
            return draft.task(name, split_of(draft.key), f"{name}-{derive_seed(draft.question):016x}")

        return cls(name, (task(draft) for draft in drafts), seed)

    def size(self, split: str) -> int | None:
        return len(self._tasks[known_split(split)])

    def get(self, split: str, index: int) -> Task:
        members = self._tasks[known_split(split)]
        if not members:
            raise empty_split(self, split)
        return members[_checked(index) % len(members)]


class GeneratedTaskSet(TaskSet):
    """Unbounded tasks generated on demand. `make(rng, split)` draws one whose split key belongs to `split`."""

    def __init__(self, name: str, make: Callable[[random.Random, str], Draft], seed: int = 0) -> None:
        self.name = name
        self.kinds = (name,)
        self._make = make
        self._seed = seed

    def size(self, split: str) -> int | None:
        known_split(split)
        return None

    def get(self, split: str, index: int) -> Task:
        rng = random.Random(derive_seed(self.name, self._seed, known_split(split), _checked(index)))
        return self._make(rng, split).task(self.name, split, f"{self.name}-{self._seed}-{split}-{index}")


def take(taskset: TaskSet, split: str, n: int) -> list[Task]:
    """Return the first `n` tasks of a split, each once: fewer if a finite split has fewer."""
    size = taskset.size(split)
    return [taskset.get(split, index) for index in range(n if size is None else min(n, size))]


def check(taskset: TaskSet, splits: Sequence[str] = SPLITS) -> None:
    """Raise `TaskError` if one of the splits has no task."""
    for split in splits:
        if taskset.size(split) == 0:
            raise empty_split(taskset, split)


def empty_split(taskset: TaskSet, split: str) -> TaskError:
    """Return the error for a split without tasks; it names the splits that have some."""
    sizes = {other: taskset.size(other) for other in SPLITS}
    filled = ", ".join(
        f"{other} ({'unbounded' if size is None else size})" for other, size in sizes.items() if size != 0
    )
    return TaskError(
        f"task set '{taskset.name}' has no task in split '{split}'",
        f"it has tasks in: {filled or 'no split'}; a file's options `split`, `val_share` and `test_share` change that",
    )


def shortage(taskset: TaskSet, split: str, wanted: int) -> str:
    """Return a warning if the split holds fewer than `wanted` tasks, else an empty string."""
    size = taskset.size(split)
    if size is None or size >= wanted:
        return ""
    return f"the split '{split}' of '{taskset.name}' has {size} tasks, fewer than the {wanted} requested: all are used"


def known_split(split: str) -> str:
    """Return `split`; raise `TaskError` if it does not exist."""
    if split not in SPLITS:
        raise TaskError(f"there is no split '{split}'", nearest(split, SPLITS))
    return split


def _checked(index: int) -> int:
    if index < 0:
        raise ValueError(f"a task index starts at 0, not {index}")
    return index
