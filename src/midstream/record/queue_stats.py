"""Statistics of the group queue: groups by state, their age, and trajectories that arrived too late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from midstream.record import schema
from midstream.record.group_states import GroupState

_groups = schema.groups.c
_members = schema.trajectories.c


def count_query(channel: str | None, now: float) -> sa.Executable:
    """Build a query for state, number of groups, and when the oldest became ready; the index covers all columns.

    Groups past their deadline and expired leases count as ready before any process updates them.
    """
    state = sa.case(
        (_due(now), GroupState.READY.value), (_gone(now), GroupState.READY.value), else_=_groups.state
    ).label("state")
    since = sa.func.min(sa.func.coalesce(_groups.ready_at, _groups.deadline))
    query = sa.select(state, sa.func.count().label("count"), since.label("since")).group_by(state)
    return query if channel is None else query.where(_groups.channel == channel)


def parse_counts(rows: Iterable[Any], now: float) -> dict[str, float]:
    """Convert rows of `count_query`: groups by state, and `oldest_ready_s`, the age of the oldest ready group."""
    counts: dict[str, float] = dict.fromkeys([state.value for state in GroupState], 0)
    oldest = 0.0
    for state, count, since in rows:
        counts[state] = count
        if state == GroupState.READY:
            oldest = max(0.0, now - since)
    return {**counts, "oldest_ready_s": oldest}


def ready(channel: str, now: float) -> sa.Executable:
    """Build a query for the number of ready groups. Unlike `count_query` it ignores groups that were trained on."""
    return sa.select(sa.func.count()).select_from(schema.groups).where(_groups.channel == channel, _is_ready(now))


def oldest_ready_version(connection: sa.Connection, channel: str | None, now: float) -> int | None:
    """Return the lowest, over the ready groups, of the newest policy version in each."""
    newest = sa.func.max(schema.steps.c.policy_version)
    of_it = sa.true() if channel is None else _groups.channel == channel
    query = (
        sa.select(newest.label("newest"))
        .join_from(schema.groups, schema.trajectories, _in_group())
        .join(schema.steps, schema.steps.c.trajectory_uid == _members.uid)
        .where(of_it, _is_ready(now))
        .group_by(_groups.prompt_uid, _groups.channel)
        .subquery()
    )
    return connection.scalar(sa.select(sa.func.min(query.c.newest)))


def left_out(channel: str | None) -> sa.Executable:
    """Build a query for the number of trajectories that joined their group, or ended, after it was leased."""
    more = sa.func.count() - _groups.ended
    query = sa.select(sa.case((more > 0, more), else_=0).label("more")).join_from(
        schema.groups, schema.trajectories, _in_group()
    )
    query = query.where(_groups.state.in_((GroupState.LEASED, GroupState.CONSUMED)))
    query = query if channel is None else query.where(_groups.channel == channel)
    by_group = query.group_by(_groups.prompt_uid, _groups.channel, _groups.ended).subquery()
    return sa.select(sa.func.coalesce(sa.func.sum(by_group.c.more), 0))


def _in_group() -> sa.ColumnElement[bool]:
    """Whether a row of `trajectories` belongs to the joined row of `groups`."""
    return sa.and_(_members.prompt_uid == _groups.prompt_uid, _members.channel == _groups.channel)


def _is_ready(now: float) -> sa.ColumnElement[bool]:
    """Whether a group can be leased now: ready, past its deadline, or held on an expired lease."""
    return sa.or_(_groups.state == GroupState.READY, _due(now), _gone(now))


def _due(now: float) -> sa.ColumnElement[bool]:
    """Whether a group is ready by its deadline but not yet updated."""
    return sa.and_(_groups.state == GroupState.WAITING, _groups.deadline <= now, _groups.ended > 0)


def _gone(now: float) -> sa.ColumnElement[bool]:
    """Whether a group's lease has expired but is not yet updated."""
    return sa.and_(_groups.state == GroupState.LEASED, _groups.lease_until <= now)
