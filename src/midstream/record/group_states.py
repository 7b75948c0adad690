"""Group states: the trajectories of a prompt in a channel, leased for training once they are ready.

A group has an expected size and a deadline. It is

        waiting    until `size` of its trajectories have ended, or its deadline has passed and at least one has ended;
        ready      afterwards; trajectories still running at the deadline are timed out and included;
        leased     while a trainer holds it, until it is consumed or released or the lease expires;
        consumed   after it was trained on;
        stale      if it was due for leasing but all its steps were sampled by too old a policy;
        rejected   if it would be ready, but curation rejected every one of its trajectories.

All functions take a connection inside one transaction: two processes that share the database never lease the same
group. Process clocks should agree to the second.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa

from midstream.core.errors import GroupClosed, LeaseLost
from midstream.core.types import Status, Trajectory
from midstream.record import schema
from midstream.store.engine import INSERT
from midstream.store.exact_json import to_json
from midstream.store.prepared import fetch, run_many
from midstream.store.schema import batches

Key = tuple[str, str]
"""`prompt_uid` and channel."""


class GroupState(StrEnum):
    WAITING = "waiting"
    READY = "ready"
    LEASED = "leased"
    CONSUMED = "consumed"
    STALE = "stale"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Leased:
    """A leased group: its ended trajectories, in the order they were begun.

    A step that curation removed from the loss has `trainable` False; a trajectory of quality `reject` is left out.
    `metadata["feedback"]` of each trajectory is the list of its users' feedback.
    """

    prompt_uid: str
    channel: str
    trajectories: tuple[Trajectory, ...]

    @property
    def key(self) -> Key:
        """The group's key in the store."""
        return self.prompt_uid, self.channel


class GroupRow(NamedTuple):
    """A row of `groups`."""

    prompt_uid: str
    channel: str
    size: int | None
    deadline: float | None
    state: str
    ended: int
    ready_at: float | None
    owner: str | None
    lease_until: float | None
    train_step: int | None


_groups = schema.groups.c
_members = schema.trajectories.c
_Counts = tuple[int, int, int]
"""Numbers of trajectories that have ended, that are running, and that have ended without being rejected."""
_OPEN = (GroupState.WAITING, GroupState.READY, GroupState.REJECTED)
"""States determined by a group's trajectories."""
_SETTLE = (
    schema.groups.update()
    .where(_groups.prompt_uid == sa.bindparam("of"), _groups.channel == sa.bindparam("within"))
    .values({name: sa.bindparam(name) for name in ("state", "ended", "ready_at")})
)


def rejected() -> sa.ColumnElement[bool]:
    """Whether curation rejected a row of `trajectories`."""
    table = schema.curation.c
    return sa.exists().where(
        table.trajectory_uid == _members.uid, table.step_index == schema.WHOLE, table.quality == "reject"
    )


_has_ended = _members.status != Status.RUNNING
# Built once: building a statement takes longer than running it.
_COUNT = (
    sa.select(
        _members.prompt_uid,
        _members.channel,
        sa.func.count(sa.case((_has_ended, 1))),
        sa.func.count(sa.case((sa.not_(_has_ended), 1))),
        sa.func.count(sa.case((sa.and_(_has_ended, sa.not_(rejected())), 1))),
    )
    .where(sa.tuple_(_members.prompt_uid, _members.channel).in_(sa.bindparam("keys", expanding=True)))
    .group_by(_members.prompt_uid, _members.channel)
)
# Always in the same order, so that concurrent transactions cannot deadlock.
_HOLD = (
    schema.groups.select()
    .where(sa.tuple_(_groups.prompt_uid, _groups.channel).in_(sa.bindparam("keys", expanding=True)))
    .order_by(_groups.prompt_uid, _groups.channel)
    .with_for_update()
)


def members(keys: Collection[Key]) -> sa.ColumnElement[bool]:
    """Whether a row of `trajectories` belongs to one of the groups `keys`."""
    return sa.tuple_(_members.prompt_uid, _members.channel).in_(sorted(keys))


def new_group(key: Key, size: int | None, deadline: float | None) -> dict[str, Any]:
    """Return the row of a new group."""
    names = ("prompt_uid", "channel", "size", "deadline", "state", "ended")
    return dict(zip(names, (*key, size, deadline, GroupState.WAITING, 0), strict=True))


@functools.cache
def insert_missing(dialect: str) -> sa.Executable:
    """Insert groups; existing rows stay unchanged."""
    return INSERT[dialect](schema.groups).on_conflict_do_nothing()


def remove(connection: sa.Connection, key: Key) -> None:
    """Delete the row of a group that has no trajectories of its own."""
    connection.execute(schema.groups.delete().where(_groups.prompt_uid == key[0], _groups.channel == key[1]))


def require_open(connection: sa.Connection, key: Key, now: float) -> None:
    """Raise `GroupClosed` if a trajectory that joins the group now would never be trained on with it. Locks the group
    until the transaction ends."""
    rows = fetch(connection, _HOLD, "keys", [key])
    if not rows:
        return
    group = GroupRow(*rows[0])
    ended, running, _ = _counted(connection, [key]).get(key, (0, 0, 0))
    why = _CLOSED.get(GroupState(group.state), "")
    if group.size is not None and ended + running >= group.size:
        why = why or f"has all its {group.size} trajectories, including failed ones"
    if _due(group, ended, now):
        why = why or "is past its deadline"
    if why:
        raise GroupClosed(
            f"the group '{group.prompt_uid}' of the channel '{group.channel}' {why}; a trajectory that joins it now "
            "would never be trained on",
            "open it under another prompt_uid; the group size comes from the first opening's group_size, or from the "
            "server's config",
        )


_CLOSED = {
    GroupState.READY: "is ready for training",
    GroupState.LEASED: "is being trained on",
    GroupState.CONSUMED: "was trained on",
    GroupState.STALE: "was set aside, as its policy is too old",
}


def update_states(connection: sa.Connection, keys: Collection[Key], now: float) -> None:
    """Update the groups `keys` to the states determined by their trajectories; delete groups without any.

    Locks the group row first: of two processes that end its last trajectories, the second sees both.
    """
    for part in batches(sorted(keys)):
        _update_states(connection, part, now)


def _update_states(connection: sa.Connection, keys: Sequence[Key], now: float) -> None:
    groups = [GroupRow(*row) for row in fetch(connection, _HOLD, "keys", keys)]
    before = _counted(connection, keys)
    late = [group for group in groups if group.state in _OPEN and _times_out(group, before, now)]
    for group in late:
        _time_out(connection, group, now)
    counts = before | (_counted(connection, [(group.prompt_uid, group.channel) for group in late]) if late else {})

    changed: list[dict[str, Any]] = []
    for group in groups:
        key = (group.prompt_uid, group.channel)
        if key not in counts:
            remove(connection, key)
        elif group.state in _OPEN:
            state = _next_state(group, before[key], counts[key], now)
            if state != (group.state, group.ended, group.ready_at):
                changed.append(dict(zip(("of", "within", "state", "ended", "ready_at"), (*key, *state), strict=True)))
    if changed:
        run_many(connection, _SETTLE, changed)


def _times_out(group: GroupRow, counts: Mapping[Key, _Counts], now: float) -> bool:
    """Whether the group is due while trajectories are running."""
    ended, running, _ = counts.get((group.prompt_uid, group.channel), (0, 0, 0))
    return _due(group, ended, now) and not _full(group, ended) and running > 0


def _next_state(group: GroupRow, before: _Counts, counts: _Counts, now: float) -> tuple[GroupState, int, float | None]:
    """Return state, trajectories ended, and when it became ready. `before` excludes those timed out just now."""
    ended, _, usable = counts
    full, due = _full(group, before[0]), _due(group, ended, now)
    if not full and not due:
        return GroupState.WAITING, ended, None
    state = GroupState.READY if usable else GroupState.REJECTED
    # If a trajectory had ended before, the deadline alone made it ready.
    became = group.deadline if due and not full and group.ended else now
    return state, ended, became if group.ready_at is None else group.ready_at


def _full(group: GroupRow, ended: int) -> bool:
    return group.size is not None and ended >= group.size


def _due(group: GroupRow, ended: int, now: float) -> bool:
    return group.deadline is not None and group.deadline <= now and ended > 0


def lease(
    connection: sa.Connection,
    owner: str,
    count: int,
    channel: str,
    until: float,
    now: float,
    min_version: int | None,
) -> list[Key]:
    """Lease up to `count` ready groups to `owner`, those ready longest first."""
    belongs = _groups.channel == channel
    gone = (belongs, _groups.state == GroupState.LEASED, _groups.lease_until <= now)
    _make_ready(connection, sa.and_(*gone), now)
    due = (belongs, _groups.state == GroupState.WAITING, _groups.deadline <= now, _groups.ended > 0)
    update_states(connection, _keys(connection, sa.and_(*due)), now)

    leased: list[Key] = []
    while len(leased) < count:
        # Skip rows that another process has locked instead of waiting for them.
        query = sa.select(_groups.prompt_uid, _groups.channel).where(belongs, _groups.state == GroupState.READY)
        query = query.order_by(_groups.ready_at, _groups.prompt_uid).limit(count - len(leased))
        ready = [(uid, name) for uid, name in connection.execute(query.with_for_update(skip_locked=True))]
        if not ready:
            break
        old = _older(connection, ready, min_version) if min_version is not None else set[Key]()
        fresh = [key for key in ready if key not in old]
        _mark(connection, old, state=GroupState.STALE)
        _mark(connection, fresh, state=GroupState.LEASED, owner=owner, lease_until=until)
        leased += fresh
    return leased


def consume(connection: sa.Connection, owner: str, keys: Collection[Key], train_step: int) -> None:
    """Mark groups that `owner` holds as trained on. Raises `LeaseLost`, and changes nothing, if it lost one."""
    groups = [GroupRow(*row) for part in batches(sorted(keys)) for row in fetch(connection, _HOLD, "keys", part)]
    mine = [group for group in groups if group.owner == owner]
    held = [(group.prompt_uid, group.channel) for group in mine if group.state == GroupState.LEASED]
    done = {
        (group.prompt_uid, group.channel)
        for group in mine
        if group.state == GroupState.CONSUMED and group.train_step == train_step
    }
    lost = sorted(set(keys) - set(held) - done)
    if lost:
        raise LeaseLost(
            f"'{owner}' no longer holds {len(lost)} of {len(set(keys))} groups, such as '{lost[0][0]}' of the channel "
            f"'{lost[0][1]}'",
            "its lease ran out: lease for longer, or renew in time",
        )
    _mark(connection, held, state=GroupState.CONSUMED, train_step=train_step, lease_until=None)


def release(connection: sa.Connection, owner: str, keys: Collection[Key], now: float) -> int:
    """Release groups that `owner` holds; returns their number. Others are ignored."""
    mine = (_groups.owner == owner, _groups.state == GroupState.LEASED)
    return sum(_make_ready(connection, sa.and_(_among(part), *mine), now) for part in batches(sorted(keys)))


def reopen(connection: sa.Connection, owner: str, after_train_step: int, now: float) -> int:
    """Make groups that `owner` consumed after that step, or holds, ready again; returns their number."""
    later = sa.and_(_groups.state == GroupState.CONSUMED, _groups.train_step > after_train_step)
    return _make_ready(
        connection, sa.and_(_groups.owner == owner, sa.or_(later, _groups.state == GroupState.LEASED)), now
    )


def renew(connection: sa.Connection, owner: str, until: float) -> int:
    """Extend all leases of `owner` until then; returns the number of groups."""
    mine = (_groups.owner == owner, _groups.state == GroupState.LEASED)
    return connection.execute(schema.groups.update().where(*mine).values(lease_until=until)).rowcount


def _among(keys: Sequence[Key]) -> sa.ColumnElement[bool]:
    """Whether a row of `groups` is one of `keys`."""
    return sa.tuple_(_groups.prompt_uid, _groups.channel).in_(keys)


def _counted(connection: sa.Connection, keys: Sequence[Key]) -> dict[Key, _Counts]:
    """Count, per group, trajectories that have ended, are running, and have ended without being rejected. Groups
    without trajectories are omitted."""
    rows = fetch(connection, _COUNT, "keys", keys)
    return {(uid, channel): (done, running, usable) for uid, channel, done, running, usable in rows}


def _time_out(connection: sa.Connection, group: GroupRow, now: float) -> None:
    assert group.deadline is not None
    why = to_json(f"still running at the deadline of its group, {now - group.deadline:.1f} s ago", "error")
    running = (
        _members.prompt_uid == group.prompt_uid,
        _members.channel == group.channel,
        _members.status == Status.RUNNING,
    )
    ended = {"status": Status.TIMED_OUT, "error": why, "ended_at": now}
    connection.execute(schema.trajectories.update().where(*running).values(ended))


def _keys(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Key]:
    query = sa.select(_groups.prompt_uid, _groups.channel).where(condition)
    return [(uid, channel) for uid, channel in connection.execute(query)]


def _make_ready(connection: sa.Connection, condition: sa.ColumnElement[bool], now: float) -> int:
    """Make the groups ready again, keeping their position; returns fewer if their trajectories imply another state."""
    keys = _keys(connection, condition)
    if not keys:
        return 0
    values = {"state": GroupState.READY, "owner": None, "lease_until": None, "train_step": None}
    count = connection.execute(schema.groups.update().where(condition).values(values)).rowcount
    update_states(connection, keys, now)
    return count


def _older(connection: sa.Connection, keys: Sequence[Key], version: int) -> set[Key]:
    """Return the `keys` whose steps were all sampled by a policy before `version`."""
    table = schema.steps.c
    query = (
        sa.select(_members.prompt_uid, _members.channel)
        .join_from(schema.trajectories, schema.steps, table.trajectory_uid == _members.uid)
        .where(members(keys))
        .group_by(_members.prompt_uid, _members.channel)
        .having(sa.func.max(table.policy_version) < version)
    )
    return {(uid, channel) for uid, channel in connection.execute(query)}


def _mark(connection: sa.Connection, keys: Collection[Key], **values: Any) -> None:
    for part in batches(sorted(keys)):
        connection.execute(schema.groups.update().where(_among(part)).values(values))
