"""`TaskSet`: tasks by split and index, the same on every machine, so that a trainer resumes from a number.

Splits are fixed by a hash of what a task is about (its split key), 80/10/10 over train, val and test: a set that grows
never moves a task, and what the test split asks about never occurs in train.
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
    """The split that everything with this split key belongs to, whatever the seed. `val` and `test` are the shares of
    these splits. What is in `test` stays there when `test` grows."""
    position = unit_interval("split", key)
    return "test" if position >= 1 - test else "val" if position >= 1 - test - val else "train"


class TaskSet(ABC):
    """An ordered source of tasks. `kinds` are the values of `Task.kind` that occur in it."""

    name: str
    kinds: tuple[str, ...]

    @abstractmethod
    def size(self, split: str) -> int | None:
        """How many different tasks the split holds; None when it is generated without end."""

    @abstractmethod
    def get(self, split: str, index: int) -> Task:
        """Task number `index` (from 0) of the split. A finite split starts over after its last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A question of a built-in set, before it becomes a task of a split.

    `demonstration` lists the tool calls that solve it, as `{"tool", "arguments"}`; `{1}` in a string argument stands
    for the value call 1 found: what follows " is " in a fact, without the final "." and " km2", or the calculator's
    result.
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
    """Tasks that are all known. Each split is shuffled by `seed`; the split of a task is the one it carries."""

    def __init__(self, name: str, tasks: Iterable[Task], seed: int = 0) -> None:
        self.name = name
        self._tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        for task in tasks:
            self._tasks[known_split(task.split)].append(task)
        for members in self._tasks.values():
            # By id, not by position: a set that grows keeps the order of the tasks it had.
            members.sort(key=lambda task: derive_seed(name, seed, task.id))
        self.kinds = tuple(dict.fromkeys(task.kind for members in self._tasks.values() for task in members))

    @classmethod
    def from_drafts(cls, name: str, drafts: Iterable[Draft], seed: int = 0) -> FiniteTaskSet:
        """A built-in set: kind is its name, splits by the drafts' keys, ids by the questions."""

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
    """Tasks made on demand, without end. `make(rng, split)` draws one whose split key belongs to `split`."""

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
    """The first `n` tasks of a split, each once: fewer when a finite split holds fewer."""
    size = taskset.size(split)
    return [taskset.get(split, index) for index in range(n if size is None else min(n, size))]


def check(taskset: TaskSet, splits: Sequence[str] = SPLITS) -> None:
    """Raise `TaskError` when one of the splits has no task."""
    for split in splits:
        if taskset.size(split) == 0:
            raise empty_split(taskset, split)


def empty_split(taskset: TaskSet, split: str) -> TaskError:
    """The error for a split without tasks; says which splits have some."""
    sizes = {other: taskset.size(other) for other in SPLITS}
    filled = ", ".join(
        f"{other} ({'unbounded' if size is None else size})" for other, size in sizes.items() if size != 0
    )
    return TaskError(
        f"task set '{taskset.name}' has no task in split '{split}'",
        f"it has tasks in: {filled or 'no split'}; a file's options `split`, `val_share` and `test_share` change that",
    )


def shortage(taskset: TaskSet, split: str, wanted: int) -> str:
    """A line that says that the split holds fewer than `wanted` tasks; empty when it does not."""
    size = taskset.size(split)
    if size is None or size >= wanted:
        return ""
    return (
        f"the split '{split}' of '{taskset.name}' holds {size} tasks, fewer than the {wanted} asked for: all are used"
    )


def known_split(split: str) -> str:
    """`split`, or a `TaskError` when there is no such split."""
    if split not in SPLITS:
        raise TaskError(f"there is no split '{split}'", nearest(split, SPLITS))
    return split


def _checked(index: int) -> int:
    if index < 0:
        raise ValueError(f"a task index starts at 0, not {index}")
    return index
