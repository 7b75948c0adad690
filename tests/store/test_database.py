"""A toy package keeps tables, migrations and leases in the database without changes outside itself."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from midstream.core.errors import LeaseLost, RunError
from midstream.core.types import Task
from midstream.record.store import Store
from midstream.store import Batch, Database, Lease, Leases, Schema, Transaction, leases

entries = sa.Table(
    "toy_entries",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
noted_entries = sa.Table(
    "toy_entries",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("note", sa.Text, server_default="none"),
)
FIRST = Schema("toy", entries.metadata)


def _add_note(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE toy_entries ADD COLUMN note TEXT DEFAULT 'none'")


SECOND = Schema("toy", noted_entries.metadata, 2, {2: _add_note})


class Gathered:
    """Collects the entries of one transaction and writes them together."""

    flushes = 0

    def __init__(self, transaction: Transaction) -> None:
        self._connection = transaction.raw
        self._rows: list[dict[str, str]] = []

    def add(self, run: str, text: str) -> None:
        self._rows.append({"run": run, "text": text})

    def flush(self) -> None:
        if self._rows:
            self._connection.execute(entries.insert(), self._rows)
            self._rows, Gathered.flushes = [], Gathered.flushes + 1


class Journal:
    """Appends entries to a run while holding its lease."""

    def __init__(self, database: Database) -> None:
        self.database, self.leases = database, Leases(database)
        database.require(FIRST)

    def append(self, lease: Lease, text: str) -> None:
        def append(connection: sa.Connection) -> None:
            leases.check(connection, lease)
            connection.execute(entries.insert(), [{"run": lease.resource, "text": text}])

        self.database.change(append)

    def texts(self) -> list[str]:
        query = sa.select(entries.c.text).order_by(entries.c.id)
        return self.database.read(lambda connection: list(connection.scalars(query)))


@pytest.fixture
def journal(database: str) -> Iterator[Journal]:
    with Database(database, "normal") as opened:
        yield Journal(opened)


def test_only_the_newest_holder_of_a_lease_can_write(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = journal.leases.acquire("toy/run", "first", 10)
    assert first is not None and journal.leases.acquire("toy/run", "second", 10) is None
    journal.append(first, "one")
    now[0] += 11
    journal.append(first, "two")  # expired, but not taken by another owner
    second = journal.leases.acquire("toy/run", "second", 10)
    assert second is not None and second.fence == first.fence + 1
    with pytest.raises(LeaseLost, match="'first' no longer holds 'toy/run'"):
        journal.append(first, "three")
    with pytest.raises(LeaseLost):
        journal.leases.renew(first, 10)
    journal.leases.release(first)  # no longer the holder: no effect
    now[0] += 9
    second = journal.leases.renew(second, 10)
    now[0] += 9
    assert journal.leases.acquire("toy/run", "first", 10) is None
    journal.append(second, "three")
    assert journal.texts() == ["one", "two", "three"]


def test_renewing_a_lease_keeps_its_fence_and_releasing_it_changes_it(journal: Journal) -> None:
    lease = journal.leases.acquire("toy/run", "worker", 10)
    assert lease is not None
    again = journal.leases.acquire("toy/run", "worker", 20)
    assert again is not None and again.fence == lease.fence and again.until > lease.until
    journal.leases.release(again)
    with pytest.raises(LeaseLost):
        journal.append(lease, "late")
    other = journal.leases.acquire("toy/run", "other", 10)
    assert other is not None and other.fence == lease.fence + 1


def test_several_packages_share_one_file(database: str) -> None:
    with Store(database, "normal") as store:
        journal = Journal(store.database)
        lease = journal.leases.acquire("toy/run", "worker", 60)
        assert lease is not None
        journal.append(lease, "entry")
        store.trajectories.begin("t", "p", Task(id="t", prompt="q"), "train")
        assert journal.texts() == ["entry"] and store.trajectories.count() == 1
    with Database(database) as reopened:
        assert Journal(reopened).texts() == ["entry"]


def test_a_package_migrates_its_tables_and_refuses_newer_ones(database: str) -> None:
    with Database(database) as first:
        first.require(FIRST)
        first.change(lambda connection: connection.execute(entries.insert(), [{"run": "r", "text": "old"}]))
    with Database(database) as second:
        second.require(SECOND)
        rows = second.read(lambda connection: connection.execute(sa.select(noted_entries.c.note)).scalars().all())
        assert rows == ["none"]
    with Database(database) as first, pytest.raises(RunError, match=r"schema 2 of 'toy', this one reads 1"):
        first.require(FIRST)


def test_rows_of_one_transaction_are_written_together_before_any_read(database: str) -> None:
    with Database(database, "normal") as opened:
        opened.require(FIRST)
        Gathered.flushes = 0

        def add(transaction: Transaction) -> None:
            for text in ("a", "b"):
                transaction.batch(Gathered).add("r", text)

        def count(transaction: Transaction) -> int:
            transaction.batch(Gathered).add("r", "c")
            return int(transaction.connection.execute(sa.select(sa.func.count()).select_from(entries)).scalar_one())

        opened.write(add)
        assert Gathered.flushes == 1
        assert opened.write(count) == 3
    batch: type[Batch] = Gathered
    assert batch is Gathered


def test_a_read_only_database_writes_and_migrates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with pytest.raises(RunError, match="no database at"):
        Database(path, read_only=True)
    assert not path.exists()
    with Database(path) as opened:
        opened.require(FIRST)
    with sqlite3.connect(path) as connection:
        before = list(connection.iterdump())
    with Database(path, read_only=True) as looking:
        looking.require(FIRST)
        assert looking.read(lambda connection: connection.execute(entries.select()).all()) == []
        with pytest.raises(RunError, match="opened read-only"):
            looking.change(lambda connection: connection.execute(entries.delete()))
        with pytest.raises(RunError, match="cannot write"):
            looking.read(lambda connection: connection.execute(entries.delete()))
        with pytest.raises(RunError, match=r"older version \(schema 1 of 'toy', this one reads 2\)\n.*store upgrade"):
            looking.require(SECOND)
        with pytest.raises(RunError, match="holds nothing of 'leases'"):
            Leases(looking)
    with sqlite3.connect(path) as connection:
        assert list(connection.iterdump()) == before


def test_a_read_only_database_works_on_postgresql(postgresql_database: str) -> None:
    with Database(postgresql_database) as opened:
        opened.require(FIRST)
    with Database(postgresql_database, read_only=True) as looking:
        looking.require(FIRST)
        with pytest.raises(RunError, match="takes no writes"):
            looking.read(lambda connection: connection.execute(entries.delete()))


def test_a_reader_sees_commits_of_another_writer(tmp_path: Path) -> None:
    with Database(tmp_path / "store.db") as opened:
        opened.require(FIRST)
        with Database(tmp_path / "store.db", read_only=True) as looking:
            opened.change(lambda connection: connection.execute(entries.insert(), [{"run": "r", "text": "x"}]))
            assert looking.read(lambda connection: len(connection.execute(entries.select()).all())) == 1
