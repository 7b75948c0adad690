"""`Attempt`: one trajectory to generate, and the groups of attempts of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from midstream.core.seeds import derive_seed
from midstream.core.types import Task, Trajectory

RERUN_OF = "rerun_of"
"""Metadata key of a trajectory: the uid of the one that it repeats without a role."""
BRANCH_OF = "branch_of"
"""Metadata key of a trajectory: the uid of the one whose first steps it shares."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """Repeats `original` with `role` as a no-op that always replies with `reply` (see `reruns.py`)."""

    original: Trajectory
    role: str
    reply: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the new trajectory, which links it to its original."""
        return {RERUN_OF: self.original.uid, "without": self.role}


@dataclass(frozen=True, slots=True)
class Branch:
    """Begins with the first `at` steps of `original` and goes on by itself (see `branches.py`)."""

    original: Trajectory
    at: int

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the new trajectory, which links it to its original."""
        return {BRANCH_OF: self.original.uid, "branch_at": self.at}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One trajectory to generate. `seed` determines its samples."""

    task: Task
    uid: str
    prompt_uid: str
    seed: int
    channel: str = "train"
    train_step: int | None = None
    mask_seed: int | None = None
    """Seed of the words that `flow.mask_results` hides; None hides none."""
    rerun: Rerun | None = None
    """What this attempt repeats without a role; None for a new attempt."""
    branch: Branch | None = None
    """What this attempt begins like; None for a new attempt."""

    @property
    def link(self) -> Rerun | Branch | None:
        """The trajectory that this attempt starts from, if there is one."""
        return self.rerun or self.branch


def groups_of(
    tasks: Sequence[Task],
    size: int,
    *,
    prefix: str,
    seed: int,
    channel: str = "train",
    train_step: int | None = None,
    masked: bool = False,
) -> list[Attempt]:
    """Return `size` attempts per task, those of a task adjacent.

    Uids and seeds depend only on `prefix`, `seed` and the positions of task and attempt, so repeating a step repeats
    them. `masked` applies `flow.mask_results` with the same hidden words for all attempts at a task in one step."""
    return [
        Attempt(
            task=task,
            uid=f"{prefix}-{index:04d}-{member:02d}",
            prompt_uid=f"{prefix}-{index:04d}",
            seed=derive_seed(seed, prefix, index, task.id, member),
            channel=channel,
            train_step=train_step,
            mask_seed=derive_seed(seed, "mask", train_step, task.id) if masked else None,
        )
        for index, task in enumerate(tasks)
        for member in range(size)
    ]
