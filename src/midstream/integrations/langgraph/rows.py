"""Reads and writes the rows of LangGraph's checkpoints. Works on bytes; `saver` serializes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from midstream.integrations.langgraph.tables import checkpoints, values, writes
from midstream.store.engine import INSERT
from midstream.store.schema import batches

Channels = Mapping[str, tuple[Any, str]]
"""Version and digest of each channel's value, by name."""
Row = Mapping[str, Any]


class Key(NamedTuple):
    """Which checkpoint."""

    thread: str
    namespace: str
    id: str


class Loaded(NamedTuple):
    """A checkpoint's row, the rows of its channels' values by digest, and its pending writes in their order."""

    row: Any
    values: Mapping[str, Any]
    writes: Sequence[Any]

    @property
    def channels(self) -> Channels:
        return read_channels(self.row.channels)


def read_channels(text: str) -> Channels:
    return {name: (version, digest) for name, (version, digest) in json.loads(text).items()}


def put(connection: sa.Connection, row: Row, new_values: Sequence[Row], reused: Sequence[str]) -> bool:
    """Store a checkpoint with values that may be new, or replace it. Writes nothing and returns False when one of the
    digests in `reused` is not there."""
    known = sa.select(sa.func.count()).where(values.c.thread == row["thread"], values.c.digest.in_(reused))
    if reused and connection.scalar(known) != len(set(reused)):
        return False
    insert = INSERT[connection.dialect.name]
    if new_values:
        connection.execute(insert(values).on_conflict_do_nothing(), new_values)
    connection.execute(_replacing(insert(checkpoints), checkpoints), row)
    return True


def put_writes(connection: sa.Connection, rows: Sequence[Row], *, replace: bool) -> None:
    """Store pending writes. Those of the same task and place are replaced, or else kept."""
    insert = INSERT[connection.dialect.name](writes)
    connection.execute(_replacing(insert, writes) if replace else insert.on_conflict_do_nothing(), rows)


def _replacing(insert: Any, table: sa.Table) -> Any:
    keys = {column.name for column in table.primary_key}
    changed = {column.name: insert.excluded[column.name] for column in table.c if column.name not in keys}
    return insert.on_conflict_do_update(index_elements=sorted(keys), set_=changed)


def latest(connection: sa.Connection, thread: str, namespace: str) -> Key | None:
    """The newest checkpoint of a namespace: ids grow with time."""
    column = checkpoints.c
    query = sa.select(sa.func.max(column.id)).where(column.thread == thread, column.namespace == namespace)
    found = connection.scalar(query)
    return None if found is None else Key(thread, namespace, found)


def load(connection: sa.Connection, key: Key) -> Loaded | None:
    row = connection.execute(sa.select(checkpoints).where(*_is(checkpoints, key))).first()
    if row is None:
        return None
    digests = sorted({digest for _, digest in read_channels(row.channels).values()})
    found: dict[str, Any] = {}
    for some in batches(digests):
        query = sa.select(values).where(values.c.thread == key.thread, values.c.digest.in_(some))
        found |= {one.digest: one for one in connection.execute(query)}
    column = writes.c
    pending = (
        sa.select(writes)
        .where(column.thread == key.thread, column.namespace == key.namespace, column.checkpoint == key.id)
        .order_by(column.path, column.task, column.place)
    )
    return Loaded(row, found, connection.execute(pending).all())


def keys(
    connection: sa.Connection,
    keep: Callable[[Any], bool],
    *,
    thread: str | None = None,
    namespace: str | None = None,
    checkpoint: str | None = None,
    before: str | None = None,
    limit: int | None = None,
) -> list[Key]:
    """Checkpoints, newest first, of which `keep` accepts the row's metadata."""
    column = checkpoints.c
    query = sa.select(column.thread, column.namespace, column.id, column.metadata_type, column.metadata)
    for one, wanted in ((column.thread, thread), (column.namespace, namespace), (column.id, checkpoint)):
        if wanted is not None:
            query = query.where(one == wanted)
    if before is not None:
        query = query.where(column.id < before)
    found: list[Key] = []
    for row in connection.execute(query.order_by(column.id.desc(), column.thread, column.namespace)):
        if limit is not None and len(found) >= limit:
            break
        if keep(row):
            found.append(Key(row.thread, row.namespace, row.id))
    return found


def copy_thread(connection: sa.Connection, source: str, target: str) -> None:
    """Copy all of a thread; what the target has already stays."""
    for table in (values, checkpoints, writes):
        others = [column for column in table.c if column.name != "thread"]
        query = sa.select(sa.literal(target), *others).where(table.c.thread == source)
        insert = INSERT[connection.dialect.name](table)
        names = ["thread", *(column.name for column in others)]
        connection.execute(insert.from_select(names, query).on_conflict_do_nothing())


def delete_threads(connection: sa.Connection, threads: Iterable[str]) -> None:
    for some in batches(list(threads)):
        for table in (checkpoints, writes, values):
            connection.execute(table.delete().where(table.c.thread.in_(some)))


def delete_runs(connection: sa.Connection, runs: Sequence[str]) -> None:
    """Delete the checkpoints of graph runs."""
    column = checkpoints.c
    found: list[Key] = []
    for some in batches(runs):
        query = sa.select(column.thread, column.namespace, column.id).where(column.run.in_(some))
        found += [Key(*row) for row in connection.execute(query)]
    delete(connection, found)


def delete(connection: sa.Connection, unwanted: Sequence[Key]) -> None:
    """Delete checkpoints with their writes, and the values that no checkpoint of their threads has any more."""
    for key in unwanted:
        connection.execute(checkpoints.delete().where(*_is(checkpoints, key)))
        ours = (writes.c.thread == key.thread, writes.c.namespace == key.namespace, writes.c.checkpoint == key.id)
        connection.execute(writes.delete().where(*ours))
    for thread in {key.thread for key in unwanted}:
        left = connection.scalars(sa.select(checkpoints.c.channels).where(checkpoints.c.thread == thread))
        used = {digest for text in left for _, digest in read_channels(text).values()}
        there = connection.scalars(sa.select(values.c.digest).where(values.c.thread == thread))
        for some in batches([digest for digest in there if digest not in used]):
            connection.execute(values.delete().where(values.c.thread == thread, values.c.digest.in_(some)))


def all_but_latest(connection: sa.Connection, thread: str, replayed: Callable[[Any], Iterable[str]]) -> list[Key]:
    """The checkpoints of a thread that its newest one of each namespace does not need.

    `replayed` returns, of a row, the channels that are rebuilt from the writes since the last checkpoint that has their
    value: the ancestors up to that one are needed."""
    column = checkpoints.c
    query = sa.select(checkpoints).where(column.thread == thread).order_by(column.id.desc())
    by_namespace: dict[str, dict[str, Any]] = {}
    for row in connection.execute(query):
        by_namespace.setdefault(row.namespace, {})[row.id] = row
    unwanted: list[Key] = []
    for namespace, found in by_namespace.items():
        row = next(iter(found.values()))
        missing = set(replayed(row)) - set(read_channels(row.channels))
        needed = {row.id}
        while missing and (row := found.get(row.parent)) is not None:
            needed.add(row.id)
            missing -= set(read_channels(row.channels))
        unwanted += [Key(thread, namespace, one) for one in found if one not in needed]
    return unwanted


def _is(table: sa.Table, key: Key) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.thread == key.thread, table.c.namespace == key.namespace, table.c.id == key.id
