"""Batched writes to trajectories, their steps and their groups within one transaction.

The state of every affected trajectory is read first, because another process may have ended one. Rows are buffered and
written together.
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
# Built once: building a statement takes longer than running it.
_INSERT_TRAJECTORY = schema.trajectories.insert()
_LOOK_UP = (
    sa.select(_table.uid, _table.status, _table.prompt_uid, _table.channel, _table.server)
    .where(_table.uid.in_(sa.bindparam("uids", expanding=True)))
    .order_by(_table.uid)
    .with_for_update()
)


@dataclass(frozen=True, slots=True)
class TrajectoryState:
    """State of a trajectory."""

    status: str
    group: groups.Key
    server: str | None = None
    """Server that holds it."""


class TrajectoryBatch:
    """The batch of a transaction. The transaction's keys are the uids of all trajectories it may affect."""

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
        """The connection for writes, after flushing buffered rows."""
        return self._transaction.connection

    def begin(self, row: Row, size: int | None, deadline: float | None, *, joins: bool = False) -> None:
        """Insert a running trajectory, replacing any with its uid; open its group if that has a size or a deadline.
        With `joins`, raises `GroupClosed` if the group accepts no more."""
        uid, key = row["uid"], (row["prompt_uid"], row["channel"])
        self._require_held(uid, row["server"])
        group = None if size is None and deadline is None else groups.new_group(key, size, deadline)
        if joins:
            inserted = 0
            if group is not None:  # first, so that the second of two concurrent opens sees the row of the first
                inserted = run_many(self.connection, groups.insert_missing(self._connection.dialect.name), [group])
            try:
                groups.require_open(self.connection, key, clock.time())
            except GroupClosed:
                if inserted:  # a refused opening changes nothing
                    groups.remove(self.connection, key)
                raise
        if uid in self._known:
            delete(self.connection, schema.trajectories.c.uid == uid)
            self._touched.add(self._known[uid].group)
        self._begun.append(row)
        self._known[uid] = TrajectoryState(row["status"], key, row["server"])
        if group is not None:
            self._groups.append(group)

    def append(self, row: Row, unbegun: Callable[[], Row], server: str | None = None) -> bool:
        """Write a step; `unbegun` makes the row of its trajectory if there is none. `server` is the writer. Returns
        False if the trajectory has ended: then the step is late."""
        uid, index = row["trajectory_uid"], row["step_index"]
        state = self._known.get(uid)
        if state is None:
            begun = unbegun()
            self._begun.append(begun)
            self._known[uid] = TrajectoryState(begun["status"], (begun["prompt_uid"], begun["channel"]))
        elif state.status != Status.RUNNING:
            # The data of a leased group does not change: a late step replaces no other.
            self._late.setdefault((uid, index), late(row))
            return False
        self._require_held(uid, server)
        self._steps[uid, index] = row
        return True

    def step(self, row: Row) -> None:
        """Write a step unconditionally, whatever its trajectory's state."""
        self._steps[row["trajectory_uid"], row["step_index"]] = row

    def finish(self, row: Row, steps: Collection[Row], server: str | None = None) -> None:
        """Write the ending of a trajectory; `server` is the writer. Raises `AlreadyEnded`."""
        uid = row["uid"]
        self.require_running(uid, server)
        state = self._known.get(uid) or TrajectoryState(row["status"], (row["prompt_uid"], row["channel"]))
        self._ended.append(row)
        for step in steps:
            self.step(step)
        self._known[uid] = replace(state, status=row["status"])
        self._touched.add(state.group)

    def require_running(self, uid: str, server: str | None) -> None:
        """Raise `AlreadyEnded` if the trajectory has ended, `HeldElsewhere` if `server` does not hold it."""
        state = self._known.get(uid)
        if state is not None and state.status != Status.RUNNING:
            raise AlreadyEnded(f"trajectory '{uid}' has already ended: {state.status}", "its first ending stands")
        self._require_held(uid, server)

    def _require_held(self, uid: str, server: str | None) -> None:
        """Raise `HeldElsewhere` if a server other than the writer holds the trajectory."""
        state = self._known.get(uid)
        if server is not None and state is not None and state.server not in (None, server):
            raise HeldElsewhere(
                f"another server has taken over trajectory '{uid}'", "send its calls there; this server was too slow"
            )

    def discard(self, condition: sa.ColumnElement[bool]) -> int:
        """Delete the trajectories that match `condition`, with their annotations. Returns their number."""
        table = schema.trajectories.c
        of_them = sa.select(table.uid, table.prompt_uid, table.channel).where(condition).with_for_update()
        discarded = {uid: (prompt_uid, channel) for uid, prompt_uid, channel in self.connection.execute(of_them)}
        for uids in batches(list(discarded)):
            delete(self._connection, table.uid.in_(uids))
        self._touched.update(discarded.values())
        self._known = {uid: state for uid, state in self._known.items() if uid not in discarded}
        return len(discarded)

    def state_of(self, uid: str) -> TrajectoryState:
        """Return the state of the trajectory `uid`; raises `RunError` if it does not exist."""
        if uid not in self._known:
            raise RunError(f"no trajectory '{uid}' in the store", "it must have been begun, or have a step")
        return self._known[uid]

    def require_step(self, uid: str, step_index: int) -> None:
        """Raise `RunError` if the trajectory `uid` has no such step."""
        self.state_of(uid)
        table = schema.steps.c
        one = sa.select(table.step_index).where(table.trajectory_uid == uid, table.step_index == step_index)
        if self.connection.execute(one).first() is None:
            raise RunError(f"trajectory '{uid}' has no step {step_index}")

    def touch(self, key: groups.Key) -> None:
        """Mark the group `key` as changed, so that its state is updated."""
        self._touched.add(key)

    def flush(self) -> None:
        """Write buffered rows and update the states of touched groups."""
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
            groups.update_states(self._connection, touched, clock.time())

    def _execute(self, statement: sa.Executable, rows: list[Row]) -> None:
        if rows:
            run_many(self._connection, statement, rows)
            self._transaction.wrote = True


def delete(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> None:
    """Delete the trajectories that match `condition`, with their annotations."""
    uids = sa.select(schema.trajectories.c.uid).where(condition).scalar_subquery()
    for table in (schema.steps, schema.curation, schema.tags, schema.feedback):
        connection.execute(table.delete().where(table.c.trajectory_uid.in_(uids)))
    connection.execute(schema.trajectories.delete().where(condition))


def _look_up(connection: sa.Connection, uids: Collection[str]) -> dict[str, TrajectoryState]:
    """Return the stored state of `uids`, locked until the transaction ends."""
    states = {}
    for part in batches(list(uids)):
        rows = fetch(connection, _LOOK_UP, "uids", part)
        states |= {
            uid: TrajectoryState(status, (prompt_uid, channel), server)
            for uid, status, prompt_uid, channel, server in rows
        }
    return states


@functools.cache
def _upsert_trajectory(dialect: str) -> sa.Executable:
    """Insert a trajectory, or update the existing row except for the columns set when it was begun."""
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


def _upsert(dialect: str, table: Table, keys: tuple[str, ...], unchanged: tuple[str, ...]) -> sa.Executable:
    statement = INSERT[dialect](table)
    changed: dict[str, Any] = {
        c.name: statement.excluded[c.name] for c in table.columns if c.name not in (*keys, *unchanged)
    }
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
