"""Groups: the trajectories of a prompt in a channel, handed out for training once, when they are ready.

A group has an expected size and a deadline. It is

    waiting    until `size` of its trajectories have ended, or its deadline has passed and one of them has ended;
    ready      then; those still running at the deadline are timed out, and belong to what is handed out;
    leased     while somebody holds it, until they consume or release it or their time runs out;
    consumed   once it was trained on;
    stale      when it was to be handed out and all its steps were sampled by too old a policy;
    rejected   when it would be ready, but every one of its trajectories was curated away.

These are functions of a connection inside one transaction: two processes at the same database never get the same group.
Clocks are those of the processes, which should agree to the second.
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
    """A group that was handed out: its trajectories that have ended, in the order they were begun.

    A step that curation takes out of the loss has `trainable` False; a trajectory of quality `reject` is left out.
    `metadata["feedback"]` of each trajectory is the list of what people said of it.
    """

    prompt_uid: str
    channel: str
    trajectories: tuple[Trajectory, ...]

    @property
    def key(self) -> Key:
        """What names the group in the store."""
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
"""Trajectories that have ended, that run, and that have ended without being curated away."""
_OPEN = (GroupState.WAITING, GroupState.READY, GroupState.REJECTED)
"""States that follow from a group's trajectories."""
_SETTLE = (
    schema.groups.update()
    .where(_groups.prompt_uid == sa.bindparam("of"), _groups.channel == sa.bindparam("within"))
    .values({name: sa.bindparam(name) for name in ("state", "ended", "ready_at")})
)


def rejected() -> sa.ColumnElement[bool]:
    """Whether a row of `trajectories` was curated away."""
    table = schema.curation.c
    return sa.exists().where(
        table.trajectory_uid == _members.uid, table.step_index == schema.WHOLE, table.quality == "reject"
    )


_has_ended = _members.status != Status.RUNNING
# Made once: to make a statement takes longer than to run it.
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
# In the same order always, so that no two wait for each other in a ring.
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
    """The row of a group that begins."""
    names = ("prompt_uid", "channel", "size", "deadline", "state", "ended")
    return dict(zip(names, (*key, size, deadline, GroupState.WAITING, 0), strict=True))


@functools.cache
def insert_missing(dialect: str) -> sa.Executable:
    """Insert groups; those that are there stay as they are."""
    return INSERT[dialect](schema.groups).on_conflict_do_nothing()


def remove(connection: sa.Connection, key: Key) -> None:
    """Delete the row of a group that has no trajectories of its own."""
    connection.execute(schema.groups.delete().where(_groups.prompt_uid == key[0], _groups.channel == key[1]))


def must_take(connection: sa.Connection, key: Key, now: float) -> None:
    """Raises `GroupClosed` when a trajectory that joins the group now would never be handed out with it. Until the
    transaction ends nobody else joins."""
    held = fetch(connection, _HOLD, "keys", [key])
    if not held:
        return
    group = GroupRow(*held[0])
    ended, running, _ = _counted(connection, [key]).get(key, (0, 0, 0))
    why = _CLOSED.get(GroupState(group.state), "")
    if group.size is not None and ended + running >= group.size:
        why = why or f"has all its {group.size} trajectories, those that failed among them"
    if _due(group, ended, now):
        why = why or "is past its deadline"
    if why:
        raise GroupClosed(
            f"the group '{group.prompt_uid}' of the channel '{group.channel}' {why}: what joins it now would never be "
            "trained on",
            "open it under another prompt_uid; its first opening says by group_size how many a group takes, or the "
            "server's config does",
        )


_CLOSED = {
    GroupState.READY: "is ready for training",
    GroupState.LEASED: "is being trained on",
    GroupState.CONSUMED: "was trained on",
    GroupState.STALE: "was set aside, as its policy is too old",
}


def settle(connection: sa.Connection, keys: Collection[Key], now: float) -> None:
    """Bring the groups `keys` to the state that follows from their trajectories; those without any go.

    The row of a group is held first: of two processes that end its last trajectories, the second sees both.
    """
    for part in batches(sorted(keys)):
        _settle(connection, part, now)


def _settle(connection: sa.Connection, keys: Sequence[Key], now: float) -> None:
    held = [GroupRow(*row) for row in fetch(connection, _HOLD, "keys", keys)]
    before = _counted(connection, keys)
    late = [group for group in held if group.state in _OPEN and _must_end(group, before, now)]
    for group in late:
        _time_out(connection, group, now)
    counts = before | (_counted(connection, [(group.prompt_uid, group.channel) for group in late]) if late else {})

    changed: list[dict[str, Any]] = []
    for group in held:
        key = (group.prompt_uid, group.channel)
        if key not in counts:
            remove(connection, key)
        elif group.state in _OPEN:
            found = _settled(group, before[key], counts[key], now)
            if found != (group.state, group.ended, group.ready_at):
                changed.append(dict(zip(("of", "within", "state", "ended", "ready_at"), (*key, *found), strict=True)))
    if changed:
        run_many(connection, _SETTLE, changed)


def _must_end(group: GroupRow, counts: Mapping[Key, _Counts], now: float) -> bool:
    """Whether the group is due with trajectories that run."""
    ended, running, _ = counts.get((group.prompt_uid, group.channel), (0, 0, 0))
    return _due(group, ended, now) and not _full(group, ended) and running > 0


def _settled(group: GroupRow, before: _Counts, counts: _Counts, now: float) -> tuple[GroupState, int, float | None]:
    """State, trajectories ended, and since when it is ready. `before` is without those that were timed out just now."""
    ended, _, usable = counts
    full, due = _full(group, before[0]), _due(group, ended, now)
    if not full and not due:
        return GroupState.WAITING, ended, None
    state = GroupState.READY if usable else GroupState.REJECTED
    # With a trajectory that had ended before, the deadline alone made it ready.
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
    """Mark up to `count` ready groups as held by `owner`; the first to become ready come first."""
    of_it = _groups.channel == channel
    gone = (of_it, _groups.state == GroupState.LEASED, _groups.lease_until <= now)
    _to_pool(connection, sa.and_(*gone), now)
    due = (of_it, _groups.state == GroupState.WAITING, _groups.deadline <= now, _groups.ended > 0)
    settle(connection, _keys(connection, sa.and_(*due)), now)

    taken: list[Key] = []
    while len(taken) < count:
        # What another process holds at this moment is passed over, not waited for.
        query = sa.select(_groups.prompt_uid, _groups.channel).where(of_it, _groups.state == GroupState.READY)
        query = query.order_by(_groups.ready_at, _groups.prompt_uid).limit(count - len(taken))
        found = [(uid, name) for uid, name in connection.execute(query.with_for_update(skip_locked=True))]
        if not found:
            break
        old = _older(connection, found, min_version) if min_version is not None else set[Key]()
        fresh = [key for key in found if key not in old]
        _mark(connection, old, state=GroupState.STALE)
        _mark(connection, fresh, state=GroupState.LEASED, owner=owner, lease_until=until)
        taken += fresh
    return taken


def consume(connection: sa.Connection, owner: str, keys: Collection[Key], train_step: int) -> None:
    """Mark groups that `owner` holds as trained on. Raises `LeaseLost`, and changes nothing, when it has lost one."""
    found = [GroupRow(*row) for part in batches(sorted(keys)) for row in fetch(connection, _HOLD, "keys", part)]
    mine = [group for group in found if group.owner == owner]
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
    """Give back groups that `owner` holds; returns how many. Those it does not hold are left alone."""
    mine = (_groups.owner == owner, _groups.state == GroupState.LEASED)
    return sum(_to_pool(connection, sa.and_(_among(part), *mine), now) for part in batches(sorted(keys)))


def reopen(connection: sa.Connection, owner: str, after_train_step: int, now: float) -> int:
    """Give back what `owner` consumed after that step, and what it holds; returns how many groups."""
    later = sa.and_(_groups.state == GroupState.CONSUMED, _groups.train_step > after_train_step)
    return _to_pool(connection, sa.and_(_groups.owner == owner, sa.or_(later, _groups.state == GroupState.LEASED)), now)


def renew(connection: sa.Connection, owner: str, until: float) -> int:
    """Hold what `owner` holds until then; returns how many groups."""
    mine = (_groups.owner == owner, _groups.state == GroupState.LEASED)
    return connection.execute(schema.groups.update().where(*mine).values(lease_until=until)).rowcount


def _among(keys: Sequence[Key]) -> sa.ColumnElement[bool]:
    """Whether a row of `groups` is one of `keys`."""
    return sa.tuple_(_groups.prompt_uid, _groups.channel).in_(keys)


def _is(group: GroupRow) -> sa.ColumnElement[bool]:
    return sa.and_(_groups.prompt_uid == group.prompt_uid, _groups.channel == group.channel)


def _counted(connection: sa.Connection, keys: Sequence[Key]) -> dict[Key, _Counts]:
    """How many trajectories of each group have ended, run, and have ended without being curated away. Groups without
    any are left out."""
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


def _to_pool(connection: sa.Connection, condition: sa.ColumnElement[bool], now: float) -> int:
    """Make the groups ready again, at the place they had; fewer when their trajectories say otherwise."""
    keys = _keys(connection, condition)
    if not keys:
        return 0
    values = {"state": GroupState.READY, "owner": None, "lease_until": None, "train_step": None}
    count = connection.execute(schema.groups.update().where(condition).values(values)).rowcount
    settle(connection, keys, now)
    return count


def _older(connection: sa.Connection, keys: Sequence[Key], version: int) -> set[Key]:
    """Those of `keys` that have steps, all of them sampled by a policy before `version`."""
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
