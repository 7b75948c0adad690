"""Writes to trajectories, their steps and their groups within one transaction.

The state of every trajectory it concerns is looked up first, as another process may have ended one. Rows are gathered
and written together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Table

from midstream.core import clock
from midstream.core.errors import AlreadyEnded, GroupClosed, HeldElsewhere, RunError
from midstream.core.types import Status
from midstream.record import group_states as groups
from midstream.record import schema
from midstream.record.rows import Row, late
from midstream.store.engine import INSERT
from midstream.store.prepared import fetch, run_many
from midstream.store.schema import batches
from midstream.store.transaction import Transaction

_table = schema.trajectories.c
# Made once: to make a statement takes longer than to run it.
_INSERT_TRAJECTORY = schema.trajectories.insert()
_LOOK_UP = (
    sa.select(_table.uid, _table.status, _table.prompt_uid, _table.channel, _table.server)
    .where(_table.uid.in_(sa.bindparam("uids", expanding=True)))
    .order_by(_table.uid)
    .with_for_update()
)


@dataclass(frozen=True, slots=True)
class Known:
    """How a trajectory stands."""

    status: str
    group: groups.Key
    server: str | None = None
    """Who holds it."""


class TrajectoryBatch:
    """The batch of a transaction, whose keys are the uids of all trajectories it may concern."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction, self._connection = transaction, transaction.raw
        self._known = _look_up(transaction.raw, transaction.keys) if transaction.keys else {}
        self._begun: list[Row] = []
        self._groups: list[Row] = []
        self._ended: list[Row] = []
        self._steps: dict[tuple[str, int], Row] = {}
        self._late: dict[tuple[str, int], Row] = {}
        self._touched: set[groups.Key] = set()

    @property
    def connection(self) -> sa.Connection:
        """To write with. Everything gathered before is in the database."""
        return self._transaction.connection

    def begin(self, row: Row, size: int | None, deadline: float | None, *, joins: bool = False) -> None:
        """Insert a running trajectory in place of any that has its uid; open its group when that has a size or a
        deadline. With `joins` it raises `GroupClosed` when the group takes no more."""
        uid, key = row["uid"], (row["prompt_uid"], row["channel"])
        self._must_hold(uid, row["server"])
        group = None if size is None and deadline is None else groups.new_group(key, size, deadline)
        if joins:
            inserted = 0
            if group is not None:  # first: of two that open a group at once, the second is to see the first one's
                inserted = run_many(self.connection, groups.insert_missing(self._connection.dialect.name), [group])
            try:
                groups.must_take(self.connection, key, clock.time())
            except GroupClosed:
                if inserted:  # who is refused changes nothing
                    groups.remove(self.connection, key)
                raise
        if uid in self._known:
            delete(self.connection, schema.trajectories.c.uid == uid)
            self._touched.add(self._known[uid].group)
        self._begun.append(row)
        self._known[uid] = Known(row["status"], key, row["server"])
        if group is not None:
            self._groups.append(group)

    def append(self, row: Row, unbegun: Callable[[], Row], server: str | None = None) -> bool:
        """Write a step; `unbegun` makes the row of its trajectory where there is none. `server` is who writes. False
        when the trajectory has ended: then the step is late."""
        uid, index = row["trajectory_uid"], row["step_index"]
        known = self._known.get(uid)
        if known is None:
            begun = unbegun()
            self._begun.append(begun)
            self._known[uid] = Known(begun["status"], (begun["prompt_uid"], begun["channel"]))
        elif known.status != Status.RUNNING:
            # What a group was handed out with stays as it was: a late step takes no other's place.
            self._late.setdefault((uid, index), late(row))
            return False
        self._must_hold(uid, server)
        self._steps[uid, index] = row
        return True

    def step(self, row: Row) -> None:
        """Write a step as it is, whatever became of its trajectory."""
        self._steps[row["trajectory_uid"], row["step_index"]] = row

    def finish(self, row: Row, steps: Collection[Row], server: str | None = None) -> None:
        """Write how a trajectory ended; `server` is who says so. Raises `AlreadyEnded`."""
        uid = row["uid"]
        self.must_run(uid, server)
        known = self._known.get(uid) or Known(row["status"], (row["prompt_uid"], row["channel"]))
        self._ended.append(row)
        for step in steps:
            self.step(step)
        self._known[uid] = replace(known, status=row["status"])
        self._touched.add(known.group)

    def must_run(self, uid: str, server: str | None) -> None:
        """Raises `AlreadyEnded` when the trajectory has ended, `HeldElsewhere` when `server` does not hold it."""
        known = self._known.get(uid)
        if known is not None and known.status != Status.RUNNING:
            raise AlreadyEnded(
                f"trajectory '{uid}' has ended already: {known.status}", "what it ended with first stands"
            )
        self._must_hold(uid, server)

    def _must_hold(self, uid: str, server: str | None) -> None:
        """Raises `HeldElsewhere` when another server than the one that writes holds the trajectory."""
        known = self._known.get(uid)
        if server is not None and known is not None and known.server not in (None, server):
            raise HeldElsewhere(
                f"another server has taken over trajectory '{uid}'", "it takes its calls now; this one was too slow"
            )

    def discard(self, condition: sa.ColumnElement[bool]) -> int:
        """Delete the trajectories that `condition` holds for, with all that is kept of them. Returns how many."""
        table = schema.trajectories.c
        of_them = sa.select(table.uid, table.prompt_uid, table.channel).where(condition).with_for_update()
        found = {uid: (prompt_uid, channel) for uid, prompt_uid, channel in self.connection.execute(of_them)}
        for uids in batches(list(found)):
            delete(self._connection, table.uid.in_(uids))
        self._touched.update(found.values())
        self._known = {uid: known for uid, known in self._known.items() if uid not in found}
        return len(found)

    def of(self, uid: str) -> Known:
        """How the trajectory `uid` stands; `RunError` when there is none."""
        if uid not in self._known:
            raise RunError(f"no trajectory '{uid}' in the store", "it must have been begun, or have a step")
        return self._known[uid]

    def has_step(self, uid: str, step_index: int) -> None:
        """`RunError` when the trajectory `uid` has no such step."""
        self.of(uid)
        table = schema.steps.c
        one = sa.select(table.step_index).where(table.trajectory_uid == uid, table.step_index == step_index)
        if self.connection.execute(one).first() is None:
            raise RunError(f"trajectory '{uid}' has no step {step_index}")

    def touch(self, key: groups.Key) -> None:
        """Something changed that the state of the group `key` may depend on."""
        self._touched.add(key)

    def flush(self) -> None:
        """Bring what was gathered into the database, and groups up to date."""
        dialect = self._connection.dialect.name
        self._execute(_INSERT_TRAJECTORY, self._begun)
        self._execute(groups.insert_missing(dialect), self._groups)
        self._execute(_upsert_trajectory(dialect), self._ended)
        self._execute(_upsert_step(dialect), list(self._steps.values()))
        self._execute(_insert_missing_step(dialect), list(self._late.values()))
        for gathered in (self._begun, self._groups, self._ended, self._steps, self._late):
            gathered.clear()
        if self._touched:
            touched, self._touched = self._touched, set()
            groups.settle(self._connection, touched, clock.time())

    def _execute(self, statement: sa.Executable, rows: list[Row]) -> None:
        if rows:
            run_many(self._connection, statement, rows)
            self._transaction.wrote = True


def delete(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> None:
    """Delete the trajectories that `condition` holds for, with all that is kept of them."""
    uids = sa.select(schema.trajectories.c.uid).where(condition).scalar_subquery()
    for table in (schema.steps, schema.curation, schema.tags, schema.feedback):
        connection.execute(table.delete().where(table.c.trajectory_uid.in_(uids)))
    connection.execute(schema.trajectories.delete().where(condition))


def _look_up(connection: sa.Connection, uids: Collection[str]) -> dict[str, Known]:
    """What the database has of `uids`, held as it is until the transaction ends."""
    found = {}
    for part in batches(list(uids)):
        rows = fetch(connection, _LOOK_UP, "uids", part)
        found |= {
            uid: Known(status, (prompt_uid, channel), server) for uid, status, prompt_uid, channel, server in rows
        }
    return found


@functools.cache
def _upsert_trajectory(dialect: str) -> sa.Executable:
    """Insert a trajectory, or change the one that is there but for what was said when it was begun."""
    return _upsert(
        dialect,
        schema.trajectories,
        ("uid",),
        ("id", "prompt_uid", "channel", "train_step", "created_at", "session", "server"),
    )


@functools.cache
def _upsert_step(dialect: str) -> sa.Executable:
    return _upsert(dialect, schema.steps, ("trajectory_uid", "step_index"), ())


@functools.cache
def _insert_missing_step(dialect: str) -> sa.Executable:
    return INSERT[dialect](schema.steps).on_conflict_do_nothing()


def _upsert(dialect: str, table: Table, keys: tuple[str, ...], kept: tuple[str, ...]) -> sa.Executable:
    statement = INSERT[dialect](table)
    changed: dict[str, Any] = {
        c.name: statement.excluded[c.name] for c in table.columns if c.name not in (*keys, *kept)
    }
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
