"""Notes: what people decide and say about what was recorded, kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from midstream.record import curation, feedback
from midstream.record.access import Access
from midstream.record.curation import Curation, Quality
from midstream.record.feedback import Feedback
from midstream.record.transaction import Transaction


class Notes(Access):
    """Curation and feedback."""

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
        """Decide something about a trajectory or one of its steps; None leaves what was decided before.

        `trainable=False` takes the step, or every step of the trajectory, out of the loss; the trajectory's reward
        still counts in the statistics of its group. `quality="reject"` of a trajectory leaves it out of its group
        altogether. What was handed out already does not change. `trainable=True`, `quality=""`, `tags=()` and `note=""`
        take back.
        """
        curation.checked(quality)
        given = {"trainable": trainable, "quality": quality, "tags": tags, "note": note}
        said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if tags is not None:
            said["tags"] = tuple(tags)

        def decide(transaction: Transaction) -> None:
            known = transaction.of(trajectory_uid)
            if step_index is not None:
                transaction.has_step(trajectory_uid, step_index)
            connection = transaction.connection
            before = {one.step_index: one for one in curation.read(connection, [trajectory_uid])}
            nothing = Curation(trajectory_uid=trajectory_uid, step_index=step_index)
            curation.write(connection, replace(before.get(step_index, nothing), **said))
            transaction.touch(known.group)

        self._writer.submit_sync(decide, trajectory_uid)

    def curation(self, trajectory_uid: str) -> list[Curation]:
        """What was decided about a trajectory (first, with no `step_index`) and its steps."""
        return self.read(lambda connection: curation.read(connection, [trajectory_uid]))

    def add_feedback(
        self,
        trajectory_uid: str,
        kind: feedback.Kind,
        value: float | None = None,
        text: str = "",
        step_index: int | None = None,
        key: str | None = None,
    ) -> bool:
        """Keep what somebody said of a trajectory or a step of it, as `Feedback` tells. False, and nothing is kept,
        when there is feedback on it with this `key` already."""
        one = Feedback(trajectory_uid=trajectory_uid, kind=kind, value=value, text=text, step_index=step_index, key=key)

        def add(transaction: Transaction) -> bool:
            transaction.of(trajectory_uid)
            if step_index is not None:
                transaction.has_step(trajectory_uid, step_index)
            return feedback.write(transaction.connection, one)

        return self._writer.submit_sync(add, trajectory_uid)

    def feedback(self, trajectory_uid: str) -> list[Feedback]:
        """What was said of a trajectory and its steps, in the order it came."""
        return self.read(lambda connection: feedback.read(connection, [trajectory_uid]))
