"""Retention: deletes old, finished data and reclaims its space."""

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
    """Whether a row of `trajectories` is among the `at_most` oldest that ended before that moment, and not in a group
    that is leased or in one of the states `keep`."""
    of, group = schema.trajectories.c, schema.groups.c
    protected = sa.exists().where(
        group.prompt_uid == of.prompt_uid,
        group.channel == of.channel,
        group.state.in_({GroupState.LEASED, *keep}),
    )
    old = sa.select(of.id).where(of.status != Status.RUNNING, of.ended_at < ended_before, sa.not_(protected))
    if channel is not None:
        old = old.where(of.channel == channel)
    return of.id.in_(old.order_by(of.ended_at, of.id).limit(at_most).scalar_subquery())


def vacuum(engine: sa.Engine, where: str) -> None:
    """Return the space of deleted rows to the file system. Raises `RunError` if this is not possible now."""
    raw = engine.raw_connection()
    connection: Any = raw.driver_connection
    try:
        if engine.dialect.name == "postgresql":
            connection.autocommit = True  # VACUUM cannot run in a transaction
            connection.execute("VACUUM FULL")
            connection.autocommit = False
        else:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except engine.dialect.loaded_dbapi.Error as error:
        raw.invalidate()
        raise RunError(
            f"cannot reclaim space of '{where}': {error}", "try again when the database is less busy"
        ) from None
    finally:
        raw.close()
