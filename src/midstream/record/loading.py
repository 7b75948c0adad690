"""Reads trajectories from the database: whole, summarized, or prepared for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record import curation, feedback, schema
from midstream.record import group_states as groups
from midstream.record.rows import step_from_row, trajectory_from_row
from midstream.store.exact_json import from_json
from midstream.store.schema import batches


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trajectory with its other columns in the store. Times are seconds since 1970."""

    id: int
    """Increases in the order trajectories were begun."""
    trajectory: Trajectory
    channel: str
    train_step: int | None
    created_at: float
    ended_at: float | None
    session: Mapping[str, Any] | None
    """Data stored by the process that began it."""
    server: str | None
    """Server that holds it while it runs, see `servers`."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A trajectory without its steps. `steps` and `tokens` count them; times are seconds since 1970."""

    id: int
    uid: str
    prompt_uid: str
    channel: str
    train_step: int | None
    status: Status
    task: Task
    answer: str | None
    turns: int
    reward: float | None
    error: str
    created_at: float
    ended_at: float | None
    steps: int
    tokens: int
    """Number of sampled tokens."""


def summaries(
    connection: sa.Connection,
    matching: Sequence[sa.ColumnElement[bool]],
    order: sa.ColumnElement[Any],
    limit: int,
) -> list[Summary]:
    """Return at most `limit` trajectories that match `wanted`; reads no tokens."""
    of, step = schema.trajectories.c, schema.steps.c
    page = sa.select(of.id).where(*matching).order_by(order).limit(limit).subquery()
    columns = (
        *(of.id, of.uid, of.prompt_uid, of.channel, of.train_step, of.status, of.task, of.answer, of.turns),
        *(of.reward, of.error, of.created_at, of.ended_at),
    )
    # A token id takes four bytes, see `schema`.
    sampled = sa.func.coalesce(sa.func.sum(sa.func.length(step.response_ids)), 0)
    query = (
        sa.select(*columns, sa.func.count(step.step_index).label("steps"), sampled.label("bytes"))
        .join_from(schema.trajectories, page, page.c.id == of.id)
        .outerjoin(schema.steps, step.trajectory_uid == of.uid)
        .group_by(*columns)
        .order_by(order)
    )
    return [
        Summary(
            id=row.id,
            uid=row.uid,
            prompt_uid=row.prompt_uid,
            channel=row.channel,
            train_step=row.train_step,
            status=Status(row.status),
            task=Task(**from_json(row.task)),
            answer=from_json(row.answer),
            turns=row.turns,
            reward=row.reward,
            error=from_json(row.error),
            created_at=row.created_at,
            ended_at=row.ended_at,
            steps=row.steps,
            tokens=int(row.bytes) // 4,
        )
        for row in connection.execute(query)
    ]


def read(connection: sa.Connection, query: sa.Select[Any]) -> list[Recorded]:
    """Return the trajectories found by `query`, a select of rows of `trajectories`."""
    rows = connection.execute(query).mappings().all()
    owners: dict[str, list[Step]] = {row["uid"]: [] for row in rows}
    for uids in batches(list(owners)):
        of_them = schema.steps.select().where(schema.steps.c.trajectory_uid.in_(uids))
        for row in connection.execute(of_them.order_by(schema.steps.c.step_index)).mappings():
            owners[row["trajectory_uid"]].append(step_from_row(row))
    return [
        Recorded(
            row["id"],
            trajectory_from_row(row, owners[row["uid"]]),
            row["channel"],
            row["train_step"],
            row["created_at"],
            row["ended_at"],
            None if row["session"] is None else from_json(row["session"]),
            row["server"],
        )
        for row in rows
    ]


def read_groups(connection: sa.Connection, keys: Sequence[groups.Key]) -> list[groups.Leased]:
    """Return the groups `keys`, in that order, prepared for training."""
    table = schema.trajectories.c
    usable = (table.status != Status.RUNNING, sa.not_(groups.rejected()))
    recorded: list[Recorded] = []
    for part in batches(keys):
        of_them = schema.trajectories.select().where(groups.members(part), *usable)
        recorded += read(connection, of_them.order_by(table.id))
    decided: dict[str, list[curation.Curation]] = {one.trajectory.uid: [] for one in recorded}
    comments: dict[str, list[dict[str, Any]]] = {uid: [] for uid in decided}
    for uids in batches(list(decided)):
        for one in curation.read(connection, uids):
            decided[one.trajectory_uid].append(one)
        for one in feedback.read(connection, uids):
            comments[one.trajectory_uid].append(one.mapping())
    in_group: dict[groups.Key, list[Trajectory]] = {key: [] for key in keys}
    for one in recorded:
        trajectory = curation.apply(one.trajectory, decided[one.trajectory.uid])
        trajectory = replace(trajectory, metadata={**trajectory.metadata, "feedback": comments[trajectory.uid]})
        in_group[trajectory.prompt_uid, one.channel].append(trajectory)
    return [groups.Leased(key[0], key[1], tuple(in_group[key])) for key in keys]
