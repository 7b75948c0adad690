"""Feedback: ratings, comments and corrections from an agent's users. `rewards/feedback.py` turns it into rewards."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from midstream.core.errors import RunError, nearest
from midstream.record import schema
from midstream.store.engine import INSERT
from midstream.store.exact_json import from_json, to_json

Kind = Literal["thumbs", "rating", "correction", "comment"]
KINDS: tuple[Kind, ...] = ("thumbs", "rating", "correction", "comment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One piece of feedback on a step, or on the whole trajectory when `step_index` is None.

    `value` is 1 or -1 for `thumbs`, 0 to 1 for a `rating`, and None otherwise; `text` is a `comment`, or the reply that
    should have been given (`correction`). The first feedback with a given `key` counts. Raises `RunError` for an
    invalid combination.
    """

    trajectory_uid: str
    kind: Kind
    value: float | None = None
    text: str = ""
    step_index: int | None = None
    key: str | None = None
    created_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RunError(f"no feedback '{self.kind}'", nearest(self.kind, KINDS))
        fits = {
            "thumbs": self.value in (1, -1),
            "rating": self.value is not None and math.isfinite(self.value) and 0 <= self.value <= 1,
        }.get(self.kind, self.value is None and bool(self.text.strip()))
        if not fits:
            wanted = {"thumbs": "a value of 1 or -1", "rating": "a value from 0 to 1"}
            raise RunError(
                f"feedback '{self.kind}' with the value {self.value} and {len(self.text)} characters of text",
                f"it takes {wanted.get(self.kind, 'a text, and no value')}",
            )

    def mapping(self) -> dict[str, Any]:
        """Return the entry for `metadata["feedback"]` of a trajectory read for training."""
        return {name: value for name, value in asdict(self).items() if name != "trajectory_uid"}


def write(connection: sa.Connection, one: Feedback) -> bool:
    """Insert `one`; returns False if feedback with its key exists."""
    row = {**asdict(one), "text": to_json(one.text, "text of feedback")}
    insert = INSERT[connection.dialect.name](schema.feedback).on_conflict_do_nothing()
    return connection.execute(insert.values(row).returning(schema.feedback.c.id)).first() is not None


def read(connection: sa.Connection, trajectory_uids: Collection[str]) -> list[Feedback]:
    """Return all feedback on the trajectories, oldest first."""
    table = schema.feedback.c
    query = schema.feedback.select().where(table.trajectory_uid.in_(trajectory_uids)).order_by(table.id)
    return [
        Feedback(
            trajectory_uid=row.trajectory_uid,
            kind=row.kind,
            value=row.value,
            text=from_json(row.text),
            step_index=row.step_index,
            key=row.key,
            created_at=row.created_at,
        )
        for row in connection.execute(query)
    ]


def trajectory_uids(connection: sa.Connection) -> list[str]:
    """The trajectories that have feedback, in the order it first came."""
    table = schema.feedback.c
    query = sa.select(table.trajectory_uid).group_by(table.trajectory_uid).order_by(sa.func.min(table.id))
    return list(connection.execute(query).scalars())
