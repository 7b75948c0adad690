"""Curation: decisions that people make about recorded data, stored beside it. Recorded data never changes.

It applies when trajectories are read for training (`Groups.lease`): a step with `trainable` False carries no loss, and
a trajectory of quality `reject` is removed from its group.
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
"""The empty quality means no decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """Decisions about a step, or about the whole trajectory when `step_index` is None."""

    trajectory_uid: str
    step_index: int | None = None
    trainable: bool | None = None
    """False removes it from the loss. True and None keep the recorded value."""
    quality: Quality = ""
    tags: tuple[str, ...] = ()
    note: str = ""


def check_quality(quality: str | None) -> str | None:
    """Return `quality` if it is valid; otherwise raise `RunError` with the nearest valid one."""
    if quality is not None and quality not in QUALITIES:
        raise RunError(f"no quality '{quality}'", nearest(quality, [one for one in QUALITIES if one]))
    return quality


def write(connection: sa.Connection, one: Curation) -> None:
    """Insert `one`, replacing earlier decisions about the same trajectory or step."""
    key = _key(one.trajectory_uid, one.step_index)
    row = {
        **key,
        "trainable": one.trainable,
        "quality": one.quality,
        "note": to_json(one.note, "note of a curation"),
    }
    insert = INSERT[connection.dialect.name](schema.curation)
    changed = {name: insert.excluded[name] for name in ("trainable", "quality", "note")}
    connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=changed), [row])
    connection.execute(schema.tags.delete().filter_by(**key))
    if one.tags:
        connection.execute(schema.tags.insert(), [{**key, "tag": tag} for tag in dict.fromkeys(one.tags)])


def read(connection: sa.Connection, trajectory_uids: Collection[str]) -> list[Curation]:
    """Return all decisions about the trajectories and their steps; the whole trajectory comes before its steps."""
    tags: dict[tuple[str, int], list[str]] = {}
    table = schema.tags.c
    for uid, index, tag in connection.execute(
        sa.select(table.trajectory_uid, table.step_index, table.tag)
        .where(table.trajectory_uid.in_(trajectory_uids))
        .order_by(table.tag)
    ):
        tags.setdefault((uid, index), []).append(tag)
    table = schema.curation.c
    in_order = schema.curation.select().where(table.trajectory_uid.in_(trajectory_uids))
    return [
        Curation(
            trajectory_uid=row.trajectory_uid,
            step_index=None if row.step_index == schema.WHOLE else row.step_index,
            trainable=row.trainable,
            quality=row.quality,
            tags=tuple(tags.get((row.trajectory_uid, row.step_index), ())),
            note=from_json(row.note),
        )
        for row in connection.execute(in_order.order_by(table.trajectory_uid, table.step_index))
    ]


def apply(trajectory: Trajectory, decided: Sequence[Curation]) -> Trajectory:
    """Return `trajectory` for training: steps removed from the loss are not `trainable`."""
    out = {one.step_index for one in decided if one.trainable is False}
    if not out:
        return trajectory
    steps = [
        replace(step, trainable=False) if None in out or step.step_index in out else step for step in trajectory.steps
    ]
    return replace(trajectory, steps=tuple(steps))


def _key(trajectory_uid: str, step_index: int | None) -> dict[str, Any]:
    return {"trajectory_uid": trajectory_uid, "step_index": schema.WHOLE if step_index is None else step_index}
