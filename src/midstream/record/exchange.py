"""Export and import: trajectories as JSONL or Parquet, with their steps, groups, curation and feedback.

A JSONL file begins with a line `{"format": "midstream", "schema_version": 2}`; each line after it is a trajectory, as
`exact_json` writes it. A Parquet file says the same in its metadata, and has a row for each trajectory; columns that
are neither numbers, names nor token ids hold that JSON. Both are read and written a few trajectories at a time. What
is read back is what was written, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, Unpack

import sqlalchemy as sa

from midstream.core.errors import RunError, nearest
from midstream.record import curation, feedback, schema
from midstream.record.export_files import Record, form_of
from midstream.record.export_format import Portable, portable, record_of
from midstream.record.filters import Filters
from midstream.record.loading import Recorded
from midstream.record.store import Store
from midstream.record.trajectories import PAGE
from midstream.store.engine import INSERT
from midstream.store.transaction import Transaction

T = TypeVar("T")
Placed = tuple[str, Portable]
"""Where in a file something stands, and what it is."""


@dataclass(frozen=True, slots=True)
class Imported:
    """How many trajectories came in, and how many were there already."""

    count: int
    skipped: int


def export_to(store: Store, path: str | Path, **filters: Unpack[Filters]) -> int:
    """Write the trajectories that `filters` leave to a `.jsonl` or `.parquet` file; returns how many.

    A file that is there is replaced once the new one is whole. What is written to the store meanwhile may be in it or
    not.
    """
    path = Path(path)
    written = 0
    unfinished = path.with_name(f".{path.name}.unfinished")
    form = form_of(path)
    try:
        with form.write(unfinished) as write:
            for page in _pages(store.trajectories.recorded(**filters)):
                write(_records(store, page))
                written += len(page)
        unfinished.replace(path)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}", "name another file") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def import_from(store: Store, path: str | Path, existing: Literal["refuse", "skip"] = "refuse") -> Imported:
    """Read a file that `export_to` wrote into the store.

    The whole file is read once before anything is written: a damaged line, a version that is not known, or with
    `existing="refuse"` a trajectory that is in the store already, is a `RunError` with its line, and changes nothing.
    With `skip` such a trajectory is passed over, and stays as it is.
    """
    if existing not in ("refuse", "skip"):
        raise RunError(f"no such way to treat what exists: '{existing}'", nearest(existing, ("refuse", "skip")))
    path = Path(path)
    for page in _pages(_read(path)):
        if existing == "refuse":
            there = store.database.read(lambda connection, page=page: _there(connection, page))
            for place, one in page:
                if one.uid in there:
                    raise RunError(
                        f"{place}: trajectory '{one.uid}' is in '{store.where}' already",
                        "existing='skip' (--existing skip) passes over those",
                    )
    count = skipped = 0
    for page in _pages(_read(path)):
        new = store.database.write(lambda transaction, page=page: _insert(transaction, page))
        count, skipped = count + new, skipped + len(page) - new
    return Imported(count, skipped)


def _records(store: Store, page: list[Recorded]) -> list[Record]:
    uids = [one.trajectory.uid for one in page]

    def read(connection: sa.Connection) -> list[Record]:
        decided, said = curation.read(connection, uids), feedback.read(connection, uids)
        keys = {(one.trajectory.prompt_uid, one.channel) for one in page}
        of_them = sa.tuple_(schema.groups.c.prompt_uid, schema.groups.c.channel).in_(sorted(keys))
        found = connection.execute(schema.groups.select().where(of_them)).mappings()
        groups = {(group["prompt_uid"], group["channel"]): {**group} for group in found}
        return [
            record_of(
                one,
                [c for c in decided if c.trajectory_uid == one.trajectory.uid],
                [f for f in said if f.trajectory_uid == one.trajectory.uid],
                groups.get((one.trajectory.prompt_uid, one.channel)),
            )
            for one in page
        ]

    return store.database.read(read)


def _there(connection: sa.Connection, page: list[Placed]) -> set[str]:
    uid = schema.trajectories.c.uid
    return set(connection.execute(sa.select(uid).where(uid.in_([one.uid for _, one in page]))).scalars())


def _insert(transaction: Transaction, page: list[Placed]) -> int:
    connection = transaction.connection
    there = _there(connection, page)
    new = list({one.uid: one for _, one in page if one.uid not in there}.values())
    for table, rows in (
        (schema.trajectories, [one.trajectory for one in new]),
        (schema.steps, [step for one in new for step in one.steps]),
    ):
        if rows:
            connection.execute(table.insert(), rows)
    groups = [one.group for one in new if one.group is not None]
    if groups:
        connection.execute(INSERT[connection.dialect.name](schema.groups).on_conflict_do_nothing(), groups)
    for one in new:
        for decided in one.curation:
            curation.write(connection, decided)
        for said in one.feedback:
            feedback.write(connection, said)
    return len(new)


def _pages(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while page := list(islice(left, PAGE)):
        yield page


def _read(path: Path) -> Iterator[Placed]:
    try:
        for place, record in form_of(path).read(path):
            try:
                read = portable(record())
            except RecursionError:
                raise RunError(f"'{path}', {place} is damaged: it is nested too deeply", "export it again") from None
            except (ValueError, TypeError) as error:  # json's own are among them, and those of tags that hold no such
                raise RunError(f"'{path}', {place} is damaged: {error}", "export it again") from None
            yield f"'{path}', {place}", read
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror or error}", "name a file that was exported") from None
