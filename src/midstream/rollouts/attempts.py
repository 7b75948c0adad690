"""An attempt at a task, and the groups of attempts that a training step makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midstream.core.seeds import derive_seed
from midstream.core.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One trajectory to make. `seed` fixes what is sampled in it."""

    task: Task
    uid: str
    prompt_uid: str
    seed: int
    channel: str = "train"
    train_step: int | None = None
    mask_seed: int | None = None
    """Decides which words `flow.mask_results` hides; None hides none."""


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
    """`size` attempts at each of `tasks`, the attempts of a task next to each other.

    Uids and seeds depend only on `prefix`, `seed` and the position of the task and the attempt, so repeating a step
    repeats them. `masked` applies `flow.mask_results`: all attempts at a task in one step miss the same words."""
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
