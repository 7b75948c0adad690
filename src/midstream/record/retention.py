"""Retention: deleting what is old and done with, and giving its space back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from midstream.core.errors import RunError
from midstream.core.types import Status
from midstream.record import schema
from midstream.record.group_states import GroupState


def prunable(
    ended_before: float, channel: str | None, keep: Collection[GroupState], at_most: int
) -> sa.ColumnElement[bool]:
    """Whether a row of `trajectories` is among the `at_most` that ended first, all before that moment, in no group that
    is leased or in one of the states `keep`."""
    of, group = schema.trajectories.c, schema.groups.c
    kept = sa.exists().where(
        group.prompt_uid == of.prompt_uid,
        group.channel == of.channel,
        group.state.in_({GroupState.LEASED, *keep}),
    )
    old = sa.select(of.id).where(of.status != Status.RUNNING, of.ended_at < ended_before, sa.not_(kept))
    if channel is not None:
        old = old.where(of.channel == channel)
    return of.id.in_(old.order_by(of.ended_at, of.id).limit(at_most).scalar_subquery())


def vacuum(engine: sa.Engine, where: str) -> None:
    """Give the space of deleted rows back to the file system. Raises `RunError` when that cannot be done now."""
    raw = engine.raw_connection()
    connection: Any = raw.driver_connection
    try:
        if engine.dialect.name == "postgresql":
            connection.autocommit = True  # VACUUM runs in no transaction
            connection.execute("VACUUM FULL")
            connection.autocommit = False
        else:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except engine.dialect.loaded_dbapi.Error as error:
        raw.invalidate()
        raise RunError(f"cannot give back space of '{where}': {error}", "try again when less is going on") from None
    finally:
        raw.close()
