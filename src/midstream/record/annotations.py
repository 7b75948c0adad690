"""Annotations: curation and feedback on recorded trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from midstream.record import curation, feedback
from midstream.record.curation import Curation, Quality
from midstream.record.feedback import Feedback
from midstream.record.trajectory_batch import TrajectoryBatch
from midstream.store.database import Database
from midstream.store.transaction import Transaction


@dataclass(eq=False)
class Annotations:
    """The curation and feedback in a database."""

    database: Database

    def curate(
        self,
        trajectory_uid: str,
        step_index: int | None = None,
        *,
        trainable: bool | None = None,
        quality: Quality | None = None,
        tags: Sequence[str] | None = None,
        note: str | None = None,
    ) -> None:
        """Curate a trajectory or one of its steps; None keeps the earlier decision.

        `trainable=False` removes the step, or every step of the trajectory, from the loss; the trajectory's reward
        still counts in its group's statistics. `quality="reject"` of a trajectory removes it from its group. Leased
        groups do not change. `trainable=True`, `quality=""`, `tags=()` and `note=""` undo a decision.
        """
        curation.check_quality(quality)
        given = {"trainable": trainable, "quality": quality, "tags": tags, "note": note}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if tags is not None:
            changes["tags"] = tuple(tags)

        def decide(transaction: Transaction) -> None:
            batch = transaction.batch(TrajectoryBatch)
            state = batch.state_of(trajectory_uid)
            if step_index is not None:
                batch.require_step(trajectory_uid, step_index)
            connection = transaction.connection
            before = {one.step_index: one for one in curation.read(connection, [trajectory_uid])}
            nothing = Curation(trajectory_uid=trajectory_uid, step_index=step_index)
            curation.write(connection, replace(before.get(step_index, nothing), **changes))
            batch.touch(state.group)

        self.database.write(decide, trajectory_uid)

    def curation(self, trajectory_uid: str) -> list[Curation]:
        """Return the curation of a trajectory (first, with no `step_index`) and its steps."""
        return self.database.read(lambda connection: curation.read(connection, [trajectory_uid]))

    def add_feedback(
        self,
        trajectory_uid: str,
        kind: feedback.Kind,
        value: float | None = None,
        text: str = "",
        step_index: int | None = None,
        key: str | None = None,
    ) -> bool:
        """Record feedback on a trajectory or one of its steps, see `Feedback`. Returns False, and records nothing, if
        feedback with this `key` exists."""
        one = Feedback(trajectory_uid=trajectory_uid, kind=kind, value=value, text=text, step_index=step_index, key=key)

        def add(transaction: Transaction) -> bool:
            batch = transaction.batch(TrajectoryBatch)
            batch.state_of(trajectory_uid)
            if step_index is not None:
                batch.require_step(trajectory_uid, step_index)
            return feedback.write(transaction.connection, one)

        return self.database.write(add, trajectory_uid)

    def feedback(self, trajectory_uid: str) -> list[Feedback]:
        """Return the feedback on a trajectory and its steps, oldest first."""
        return self.database.read(lambda connection: feedback.read(connection, [trajectory_uid]))

    def uids_with_feedback(self) -> list[str]:
        """The trajectories that have feedback, in the order it first came."""
        return self.database.read(feedback.trajectory_uids)
