"""The journal: writes events with the rows they change in one transaction, under the run's lease, and reads them back.

A write is refused with `LeaseLost` unless its lease is the newest of its run, so that a worker that was taken for dead
cannot write. Operations that wait together are committed together (`store.writer`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa

from midstream.core import clock
from midstream.plans import tables
from midstream.plans.errors import JournalDamaged, NoSuchRun
from midstream.plans.payloads import blob_rows, read_body
from midstream.plans.rows import (
    NodeRow,
    RunRow,
    StepRow,
    node_values,
    read_node,
    read_run,
    read_step,
    run_values,
    step_values,
)
from midstream.store import Database, Lease, Transaction, leases
from midstream.store.engine import INSERT
from midstream.store.leases import SCHEMA as LEASES
from midstream.store.prepared import run_many

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a run's history. `kind` is `run`, `node` or `step` with the changed fields in `data`; `choice` for a
    decision of the scheduling policy; `note` for anything else worth knowing."""

    seq: int
    at: float
    kind: str
    path: str
    data: dict[str, Any]


@dataclass(slots=True)
class Write:
    """What one transaction adds to one run."""

    run: RunRow
    lease: Lease
    events: list[Event] = field(default_factory=list[Event])
    nodes: dict[str, NodeRow] = field(default_factory=dict[str, NodeRow])
    steps: dict[tuple[str, str, str], StepRow] = field(default_factory=dict[tuple[str, str, str], StepRow])
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    consumed: list[int] = field(default_factory=list[int])
    """Rows of the inbox that this write acts on."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A run as the database has it."""

    run: RunRow
    plan: dict[str, Any]
    nodes: dict[str, NodeRow]
    steps: dict[str, list[StepRow]]
    """By path."""


def lease_name(run: str) -> str:
    """The resource whose lease a worker holds while it executes `run`."""
    return f"plans/{run}"


class _Batch:
    """Rows of one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self._connection = transaction.raw
        transaction.wrote = True
        self._checked: set[tuple[str, str, int]] = set()
        self._rows: dict[str, dict[Any, dict[str, Any]]] = {}

    def check(self, lease: Lease) -> None:
        mark = (lease.resource, lease.owner, lease.fence)
        if mark not in self._checked:
            leases.check(self._connection, lease)
            self._checked.add(mark)

    def put(self, table: str, key: Any, row: dict[str, Any]) -> None:
        self._rows.setdefault(table, {})[key] = row

    def flush(self) -> None:
        pending, self._rows = self._rows, {}
        for name, rows in pending.items():
            run_many(self._connection, _statement(name, self._connection.dialect.name), list(rows.values()))


_STATEMENTS: dict[tuple[str, str], sa.Executable] = {}


def _statement(name: str, dialect: str) -> sa.Executable:
    """Insert for events, insert-or-ignore for blobs, delete for the inbox, insert-or-replace for the rest."""
    known = _STATEMENTS.get((name, dialect))
    if known is None:
        table = tables.metadata.tables[name]
        if table is tables.inbox:
            known = table.delete().where(table.c.id == sa.bindparam("consumed"))
        elif table is tables.events:
            known = table.insert()
        else:
            insert = INSERT[dialect](table)
            if table in (tables.blobs, tables.blob_users):
                known = insert.on_conflict_do_nothing()
            else:
                keys = [column.name for column in table.primary_key]
                others = {column.name: insert.excluded[column.name] for column in table.c if column.name not in keys}
                known = insert.on_conflict_do_update(index_elements=keys, set_=others)
        _STATEMENTS[(name, dialect)] = known
    return known


class Journal:
    """The journal of a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.require(tables.SCHEMA, LEASES)

    def write(self, write: Write) -> asyncio.Future[None]:
        """Submit a write; the future is done when it is on disk. Writes are done in order."""
        rows = _rows(write)

        def operation(transaction: Transaction) -> None:
            batch = transaction.batch(_Batch)
            batch.check(write.lease)
            for table, key, row in rows:
                batch.put(table, key, row)

        return self.database.submit_future(operation)

    async def read(self, read: Callable[[sa.Connection], T]) -> T:
        """`Database.read` without blocking the event loop."""
        return await asyncio.to_thread(self.database.read, read)


def _rows(write: Write) -> list[tuple[str, Any, dict[str, Any]]]:
    """Rows of a write, taken now: the records go on changing."""
    uid = write.run.uid
    rows: list[tuple[str, Any, dict[str, Any]]] = []
    for name in write.blobs:
        rows.append(("plan_blob_users", (uid, name), {"run": uid, "hash": name[1:]}))
    rows.extend(("plan_blobs", row["hash"], row) for row in blob_rows(write.blobs))
    rows.append(("plan_runs", uid, run_values(write.run)))
    rows.extend(("plan_nodes", (uid, path), node_values(uid, path, row)) for path, row in write.nodes.items())
    rows.extend(("plan_steps", (uid, row.place), step_values(uid, row)) for row in write.steps.values())
    rows.extend(("plan_events", (uid, event.seq), event_values(uid, event)) for event in write.events)
    rows.extend(("plan_inbox", one, {"consumed": one}) for one in write.consumed)
    return rows


def event_values(run: str, event: Event) -> dict[str, Any]:
    """A row of the table `plan_events`."""
    data = json.dumps(event.data)
    return {"run": run, "seq": event.seq, "at": event.at, "kind": event.kind, "path": event.path, "data": data}


def load(connection: sa.Connection, uid: str) -> Saved:
    """Read a run. Raises `NoSuchRun`, and `JournalDamaged` when its rows cannot be read."""
    run = load_row(connection, uid)
    try:
        plan = json.loads(read_body(connection, run.plan))
        query = sa.select(tables.nodes).where(tables.nodes.c.run == uid)
        nodes = {row.path: read_node(row) for row in connection.execute(query)}
        steps: dict[str, list[StepRow]] = {}
        for row in connection.execute(sa.select(tables.steps).where(tables.steps.c.run == uid)):
            steps.setdefault(row.path, []).append(read_step(row))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise JournalDamaged(f"the journal of run '{uid}' cannot be read: {error}", "restore it from a copy") from None
    return Saved(run, plan, nodes, steps)


def load_row(connection: sa.Connection, uid: str) -> RunRow:
    """Read only the run's own row."""
    found = connection.execute(sa.select(tables.runs).where(tables.runs.c.uid == uid)).first()
    if found is None:
        raise NoSuchRun(f"no run '{uid}'", "'midstream plan status STORE' lists the runs")
    try:
        return read_run(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise JournalDamaged(f"run '{uid}' cannot be read: {error}", "restore the database from a copy") from None


def read_events(connection: sa.Connection, uid: str, after: int, limit: int, until: int | None = None) -> list[Event]:
    """Events of a run with a number above `after`, in order."""
    columns = tables.events.c
    query = sa.select(tables.events).where(columns.run == uid, columns.seq > after)
    if until is not None:
        query = query.where(columns.seq <= until)
    rows = connection.execute(query.order_by(columns.seq).limit(limit))
    return [Event(row.seq, row.at, row.kind, row.path, json.loads(row.data)) for row in rows]


def post(connection: sa.Connection, uid: str, kind: str, target: str, data: Sequence[Any] | dict[str, Any]) -> bool:
    """Leave a command for the worker that holds a run; False when the same command for the same target waits there."""
    values = {"run": uid, "kind": kind, "target": target, "data": json.dumps(data), "at": clock.time()}
    insert = INSERT[connection.dialect.name](tables.inbox).on_conflict_do_nothing().returning(tables.inbox.c.id)
    return connection.execute(insert, values).first() is not None


def read_inbox(connection: sa.Connection, uid: str) -> list[Any]:
    """Commands for a run, oldest first."""
    query = sa.select(tables.inbox).where(tables.inbox.c.run == uid).order_by(tables.inbox.c.id)
    return list(connection.execute(query))
