"""Curation: what people decide about recorded data, kept beside it. What was recorded never changes.

It acts where trajectories are read for training (`Store.lease`): a step whose `trainable` is False carries no loss, and
a trajectory whose quality is `reject` is left out of its group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from midstream.core.errors import RunError, nearest
from midstream.core.types import Trajectory
from midstream.record import schema
from midstream.store.engine import INSERT
from midstream.store.exact_json import from_json, to_json

Quality = Literal["", "good", "unsure", "bad", "reject"]
QUALITIES: tuple[Quality, ...] = ("", "good", "unsure", "bad", "reject")
"""The empty one says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """What was decided about a step, or about a whole trajectory where `step_index` is None."""

    trajectory_uid: str
    step_index: int | None = None
    trainable: bool | None = None
    """False takes it out of the loss. True and None leave that to what was recorded."""
    quality: Quality = ""
    tags: tuple[str, ...] = ()
    note: str = ""


def checked(quality: str | None) -> str | None:
    """`quality`, when it is one; `RunError` with the nearest one when not."""
    if quality is not None and quality not in QUALITIES:
        raise RunError(f"no quality '{quality}'", nearest(quality, [one for one in QUALITIES if one]))
    return quality


def write(connection: sa.Connection, one: Curation) -> None:
    """Put `one` in place of what was decided about the same before."""
    place = _place(one.trajectory_uid, one.step_index)
    row = {
        **place,
        "trainable": one.trainable,
        "quality": one.quality,
        "note": to_json(one.note, "note of a curation"),
    }
    insert = INSERT[connection.dialect.name](schema.curation)
    changed = {name: insert.excluded[name] for name in ("trainable", "quality", "note")}
    connection.execute(insert.on_conflict_do_update(index_elements=list(place), set_=changed), [row])
    connection.execute(schema.tags.delete().filter_by(**place))
    if one.tags:
        connection.execute(schema.tags.insert(), [{**place, "tag": tag} for tag in dict.fromkeys(one.tags)])


def read(connection: sa.Connection, trajectory_uids: Collection[str]) -> list[Curation]:
    """All that was decided about the trajectories and their steps, the whole of a trajectory before its steps."""
    found: dict[tuple[str, int], list[str]] = {}
    table = schema.tags.c
    for uid, index, tag in connection.execute(
        sa.select(table.trajectory_uid, table.step_index, table.tag)
        .where(table.trajectory_uid.in_(trajectory_uids))
        .order_by(table.tag)
    ):
        found.setdefault((uid, index), []).append(tag)
    table = schema.curation.c
    in_order = schema.curation.select().where(table.trajectory_uid.in_(trajectory_uids))
    return [
        Curation(
            trajectory_uid=row.trajectory_uid,
            step_index=None if row.step_index == schema.WHOLE else row.step_index,
            trainable=row.trainable,
            quality=row.quality,
            tags=tuple(found.get((row.trajectory_uid, row.step_index), ())),
            note=from_json(row.note),
        )
        for row in connection.execute(in_order.order_by(table.trajectory_uid, table.step_index))
    ]


def apply(trajectory: Trajectory, decided: Sequence[Curation]) -> Trajectory:
    """`trajectory` as it may be trained on: steps taken out of the loss are not `trainable`."""
    out = {one.step_index for one in decided if one.trainable is False}
    if not out:
        return trajectory
    steps = [
        replace(step, trainable=False) if None in out or step.step_index in out else step for step in trajectory.steps
    ]
    return replace(trajectory, steps=tuple(steps))


def _place(trajectory_uid: str, step_index: int | None) -> dict[str, Any]:
    return {"trajectory_uid": trajectory_uid, "step_index": schema.WHOLE if step_index is None else step_index}
