"""Export and import: trajectories as JSONL or Parquet, with their steps, groups, curation and feedback.

A JSONL file begins with a line `{"format": "midstream", "schema_version": 3}`; each line after it is a trajectory, as
`exact_json` writes it. A Parquet file has the same header in its metadata, and one row per trajectory; columns other
than numbers, names and token ids hold that JSON. Both are streamed a few trajectories at a time. The round trip is
exact to the bit.
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
from midstream.record.export_files import Record, file_format
from midstream.record.export_format import RecordRows, record_of, rows_of
from midstream.record.filters import Filters
from midstream.record.loading import Recorded
from midstream.record.store import Store
from midstream.record.trajectories import PAGE
from midstream.store.engine import INSERT
from midstream.store.transaction import Transaction

T = TypeVar("T")
LocatedRows = tuple[str, RecordRows]
"""Location in a file, and the rows of the record there."""


@dataclass(frozen=True, slots=True)
class Imported:
    """Numbers of imported trajectories and of those skipped because they exist."""

    count: int
    skipped: int


def export_to(store: Store, path: str | Path, **filters: Unpack[Filters]) -> int:
    """Write the trajectories that match `filters` to a `.jsonl` or `.parquet` file; returns their number.

    An existing file is replaced once the new one is complete. Concurrent writes to the store may or may not be
    included.
    """
    path = Path(path)
    written = 0
    unfinished = path.with_name(f".{path.name}.unfinished")
    export_format = file_format(path)
    try:
        with export_format.write(unfinished) as write:
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
    """Import a file that `export_to` wrote into the store.

    The whole file is validated before anything is written: a damaged line, an unknown version, or with
    `existing="refuse"` a trajectory that exists in the store, raises `RunError` with its line, and changes nothing.
    With `skip` existing trajectories are left unchanged.
    """
    if existing not in ("refuse", "skip"):
        raise RunError(f"existing must be 'refuse' or 'skip', not '{existing}'", nearest(existing, ("refuse", "skip")))
    path = Path(path)
    for page in _pages(_read(path)):
        if existing == "refuse":
            existing_uids = store.database.read(lambda connection, page=page: _existing(connection, page))
            for location, one in page:
                if one.uid in existing_uids:
                    raise RunError(
                        f"{location}: trajectory '{one.uid}' already exists in '{store.where}'",
                        "existing='skip' (--existing skip) skips existing trajectories",
                    )
    count = skipped = 0
    for page in _pages(_read(path)):
        new = store.database.write(lambda transaction, page=page: _insert(transaction, page))
        count, skipped = count + new, skipped + len(page) - new
    return Imported(count, skipped)


def _records(store: Store, page: list[Recorded]) -> list[Record]:
    uids = [one.trajectory.uid for one in page]

    def read(connection: sa.Connection) -> list[Record]:
        curations, feedbacks = curation.read(connection, uids), feedback.read(connection, uids)
        keys = {(one.trajectory.prompt_uid, one.channel) for one in page}
        of_them = sa.tuple_(schema.groups.c.prompt_uid, schema.groups.c.channel).in_(sorted(keys))
        rows = connection.execute(schema.groups.select().where(of_them)).mappings()
        groups = {(group["prompt_uid"], group["channel"]): {**group} for group in rows}
        return [
            record_of(
                one,
                [c for c in curations if c.trajectory_uid == one.trajectory.uid],
                [f for f in feedbacks if f.trajectory_uid == one.trajectory.uid],
                groups.get((one.trajectory.prompt_uid, one.channel)),
            )
            for one in page
        ]

    return store.database.read(read)


def _existing(connection: sa.Connection, page: list[LocatedRows]) -> set[str]:
    uid = schema.trajectories.c.uid
    return set(connection.execute(sa.select(uid).where(uid.in_([one.uid for _, one in page]))).scalars())


def _insert(transaction: Transaction, page: list[LocatedRows]) -> int:
    connection = transaction.connection
    existing_uids = _existing(connection, page)
    new = list({one.uid: one for _, one in page if one.uid not in existing_uids}.values())
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
        for comment in one.feedback:
            feedback.write(connection, comment)
    return len(new)


def _pages(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while page := list(islice(left, PAGE)):
        yield page


def _read(path: Path) -> Iterator[LocatedRows]:
    try:
        for location, record in file_format(path).read(path):
            try:
                read = rows_of(record())
            except RecursionError:
                raise RunError(f"'{path}', {location} is damaged: it is nested too deeply", "export it again") from None
            except (ValueError, TypeError) as error:  # from json, and from malformed tags of `exact_json`
                raise RunError(f"'{path}', {location} is damaged: {error}", "export it again") from None
            yield f"'{path}', {location}", read
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror or error}", "name a file that was exported") from None
