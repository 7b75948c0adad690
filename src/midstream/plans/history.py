"""The history of a run: its state at any event, forks from there, and retention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from midstream.core import clock
from midstream.core.errors import RunError
from midstream.plans import tables
from midstream.plans.context import DOUBT
from midstream.plans.errors import JournalDamaged
from midstream.plans.journal import Event, event_values, lease_name, load_row, read_events
from midstream.plans.rows import NodeRow, RunRow, StepRow, assign, changed, node_values, run_values, step_values
from midstream.plans.states import ENDED, NodeState, RunStatus
from midstream.store import leases
from midstream.store.engine import INSERT

PAGE = 5000
PRUNED_AT_ONCE = 100
"""Runs deleted in one transaction, which blocks other writers."""


@dataclass
class Past:
    """A run as it was after some event."""

    run: RunRow
    nodes: dict[str, NodeRow] = field(default_factory=dict[str, NodeRow])
    steps: dict[tuple[str, str, str], StepRow] = field(default_factory=dict[tuple[str, str, str], StepRow])


def state_at(connection: sa.Connection, uid: str, seq: int | None = None) -> Past:
    """The state of a run after event `seq` (None: its newest), computed from its events and, for a fork, those of the
    run it was forked from. Raises `RunError` for an event it does not have, and `JournalDamaged`."""
    row = load_row(connection, uid)
    seq = row.seq if seq is None else seq
    if not 1 <= seq <= row.seq:
        raise RunError(f"run '{uid}' has no event {seq}", f"its events are 1 to {row.seq}")
    past = Past(RunRow(uid))
    expected = 1
    for event in history(connection, uid, seq):
        if event.seq != expected:
            raise JournalDamaged(f"event {expected} of run '{uid}' is missing", "restore the database from a copy")
        expected += 1
        _apply(past, event)
    past.run.uid, past.run.seq = uid, seq
    return past


def history(connection: sa.Connection, uid: str, until: int) -> Iterator[Event]:
    """Events of a run up to number `until`, those before a fork included."""
    row = load_row(connection, uid)
    if row.parent is not None and row.parent_seq:
        yield from history(connection, row.parent, min(until, row.parent_seq))
    after = row.parent_seq if row.parent is not None else 0
    while after < until:
        page = read_events(connection, uid, after, PAGE, until)
        if not page:
            raise JournalDamaged(f"event {after + 1} of run '{uid}' is missing", "restore the database from a copy")
        yield from page
        after = page[-1].seq


def _apply(past: Past, event: Event) -> None:
    if event.kind == "run":
        assign(past.run, event.data)
    elif event.kind == "node":
        assign(past.nodes.setdefault(event.path, NodeRow()), event.data)
    elif event.kind == "step":
        data = dict(event.data)
        place = (event.path, data.pop("scope"), data.pop("key"))
        assign(past.steps.setdefault(place, StepRow(*place)), data)


def fork(connection: sa.Connection, uid: str, seq: int | None, new: str) -> None:
    """Create the run `new`, which goes on from the state of `uid` after event `seq` and those of the same transaction:
    nothing can go on from the middle of one. Rows are copied, payloads and events are shared. Raises `RunError` when
    `new` exists."""
    past = state_at(connection, uid, seq if seq is None else _end_of_transaction(connection, uid, seq))
    if connection.execute(sa.select(tables.runs.c.uid).where(tables.runs.c.uid == new)).first() is not None:
        raise RunError(f"there is a run '{new}' already", "give the fork another uid")
    row, at = past.run, past.run.seq
    status = row.status if row.status in ENDED else RunStatus.RUNNING
    values: dict[str, Any] = {"uid": new, "parent": uid, "parent_seq": at, "status": status}
    values["created_at"] = clock.time()
    if row.deadline is not None:
        values["deadline"] = clock.time() + max(row.deadline - row.created_at, 0.0)
    assign(row, values)
    changes = [("run", "", {name: value for name, value in values.items() if name != "uid"}), *_own(past)]
    row.seq = at + len(changes)
    now = clock.time()
    events = [Event(at + 1 + number, now, *change) for number, change in enumerate(changes)]
    connection.execute(tables.runs.insert(), [run_values(row)])
    connection.execute(tables.events.insert(), [event_values(new, event) for event in events])
    if past.nodes:
        connection.execute(tables.nodes.insert(), [node_values(new, path, node) for path, node in past.nodes.items()])
    if past.steps:
        connection.execute(tables.steps.insert(), [step_values(new, step) for step in past.steps.values()])
    used = sa.select(sa.literal(new), tables.blob_users.c.hash).where(tables.blob_users.c.run == uid)
    connection.execute(tables.blob_users.insert().from_select(["run", "hash"], used))


def _end_of_transaction(connection: sa.Connection, uid: str, seq: int) -> int:
    """Number of the last event that was written together with event `seq`: they have the same moment."""
    row = load_row(connection, uid)
    if row.parent is not None and seq <= row.parent_seq:
        return min(_end_of_transaction(connection, row.parent, seq), row.parent_seq)
    columns = tables.events.c
    moment = sa.select(columns.at).where(columns.run == uid, columns.seq == seq).scalar_subquery()
    query = sa.select(sa.func.max(columns.seq)).where(columns.run == uid, columns.seq >= seq, columns.at == moment)
    return connection.execute(query).scalar() or seq


def _own(past: Past) -> list[tuple[str, str, dict[str, Any]]]:
    """Changes that make a past state the start of another run: a call under way, or in doubt, is the business of the
    run it was copied from, and starts anew here, under keys of this run."""
    changes: list[tuple[str, str, dict[str, Any]]] = []
    restarted: set[str] = set()
    for path, node in past.nodes.items():
        if node.state is NodeState.IN_DOUBT or (node.state is NodeState.RUNNING and node.handler):
            restarted.add(path)
            values = {"state": NodeState.READY, "reason": ""}
            assign(node, values)
            changes.append(("node", path, values))
    for step in past.steps.values():
        begun = step.kind == "step" and step.state == "intent"
        doubted = step.key.startswith(DOUBT) and step.state == "open"
        if step.path in restarted and (begun or doubted):
            values = {"state": "absent" if begun else "expired"}
            assign(step, values)
            changes.append(("step", step.path, {**values, "scope": step.scope, "key": step.key}))
    return changes


def prune(connection: sa.Connection, ended_before: float, at_most: int = PRUNED_AT_ONCE) -> list[str]:
    """Delete runs that ended before that moment, the oldest first, and payloads that no other run uses. Runs with forks
    that are left keep their history, and a run that a worker holds is kept: it may be rolled back. Returns the uids."""
    runs = tables.runs
    forked = runs.alias()
    has_forks = sa.exists().where(forked.c.parent == runs.c.uid)
    old = (
        sa.select(runs.c.uid)
        .where(runs.c.status.in_([str(status) for status in ENDED]), runs.c.ended_at < ended_before, ~has_forks)
        .order_by(runs.c.ended_at)
        .limit(at_most)
    )
    uids = list(connection.scalars(old))
    free = leases.lock_free(connection, [lease_name(uid) for uid in uids])
    uids = [uid for uid in uids if lease_name(uid) in free]
    _delete(connection, uids)
    return uids


def delete(connection: sa.Connection, uid: str) -> None:
    """Delete a run that has ended, and payloads that no other run uses. Raises `RunError` for a run that has not ended,
    or has forks."""
    runs = tables.runs.c
    if load_row(connection, uid).status not in ENDED:
        raise RunError(f"run '{uid}' has not ended", "cancel it first")
    if connection.execute(sa.select(runs.uid).where(runs.parent == uid)).first() is not None:
        raise RunError(f"run '{uid}' has forks, which need its history", "delete those first")
    _delete(connection, [uid])


def discard(connection: sa.Connection, uid: str, *, ended: bool = True) -> None:
    """Delete a run that nobody executes or will go on with, if it exists; without `ended` only one that has not ended.
    A run with forks is kept."""
    runs = tables.runs.c
    status = connection.scalar(sa.select(runs.status).where(runs.uid == uid))
    forked = connection.execute(sa.select(runs.uid).where(runs.parent == uid)).first() is not None
    if status is not None and not forked and (ended or RunStatus(status) not in ENDED):
        _delete(connection, [uid])


def _delete(connection: sa.Connection, uids: Sequence[str]) -> None:
    if not uids:
        return
    users, runs = tables.blob_users, tables.runs
    names = [lease_name(uid) for uid in uids]
    leases.lock_free(connection, names)  # first, as writers do
    if connection.dialect.name == "postgresql":  # a writer that began to use a payload must be seen
        connection.exec_driver_sql(f"LOCK TABLE {users.name} IN SHARE ROW EXCLUSIVE MODE")
    for table in (tables.events, tables.nodes, tables.steps, tables.inbox):
        connection.execute(table.delete().where(table.c.run.in_(uids)))
    hashes = sa.select(users.c.hash).where(users.c.run.in_(uids))
    others = sa.select(users.c.hash).where(users.c.run.not_in(uids))
    unused = tables.blobs.c.hash.in_(hashes) & tables.blobs.c.hash.not_in(others)
    connection.execute(tables.blobs.delete().where(unused))
    connection.execute(users.delete().where(users.c.run.in_(uids)))
    connection.execute(runs.delete().where(runs.c.uid.in_(uids)))
    leases.forget(connection, names)


def create(connection: sa.Connection, row: RunRow, blobs: dict[str, bytes]) -> bool:
    """Write a new run and its first event; False when there is one with its uid."""
    row.seq = 1
    insert = INSERT[connection.dialect.name]
    made = insert(tables.runs).on_conflict_do_nothing().returning(tables.runs.c.uid)
    if connection.execute(made, run_values(row)).first() is None:
        return False
    data = {name: value for name, value in changed(row).items() if name not in ("uid", "seq")}
    connection.execute(tables.events.insert(), [event_values(row.uid, Event(1, row.created_at, "run", "", data))])
    for name, body in blobs.items():
        connection.execute(insert(tables.blobs).on_conflict_do_nothing(), [{"hash": name[1:], "body": body}])
        connection.execute(insert(tables.blob_users).on_conflict_do_nothing(), [{"run": row.uid, "hash": name[1:]}])
    return True
