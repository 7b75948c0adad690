"""Database errors (not a store, another version, unreachable, full) are reported with hints."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, event
from tests.record.conformance.steps import a_step

from midstream.core.errors import RunError
from midstream.core.types import Constraint, Status, Step, Task, Trajectory
from midstream.record.store import Store


def test_a_full_disk_is_a_clear_error_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    def small(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA max_page_count=60")

    event.listen(Engine, "connect", small)
    try:
        with Store(tmp_path / "store.db") as store:
            acknowledged = 0
            with pytest.raises(RunError, match="no room left") as raised:
                for index in range(1000):
                    store.trajectories.append_sync(a_step("u", index, text="x" * 2000))
                    acknowledged += 1
            assert "free disk space" in raised.value.hint
            assert acknowledged > 10
            assert len(store.trajectories.get("u").steps) == acknowledged
    finally:
        event.remove(Engine, "connect", small)


def test_a_file_that_is_not_a_store_is_refused_and_unchanged(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("These are my notes, not a database.\n" * 40)
    with pytest.raises(RunError, match="not a database"):
        Store(other)
    assert other.read_text().startswith("These are my notes")
    with pytest.raises(RunError, match="cannot open"):
        Store(tmp_path / "no" / "such" / "folder.db")
    with pytest.raises(RunError, match="cannot open"):
        Store(tmp_path)
    with pytest.raises(RunError, match="no store on 'mysql'"):
        Store("mysql://host/name")
    with pytest.raises(RunError, match="did you mean 'normal'"):
        Store(tmp_path / "store.db", durability="norml")  # pyright: ignore[reportArgumentType]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store.db").close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE schemas SET version = 99 WHERE name = 'record'")
    with pytest.raises(RunError, match=r"another version of Midstream \(schema 99"):
        Store(tmp_path / "store.db")


def test_an_unknown_uid_and_a_closed_store_are_errors(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with pytest.raises(RunError, match="no trajectory 'nobody'"):
        store.trajectories.get("nobody")
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.trajectories.append_sync(a_step("u"))


SCHEMA_1 = Path(__file__).parent / "schema_1.sql"
"""The dump of a store that version 0.1.0 wrote: three steps of a training run, the last one cut short."""
SCHEMA_2 = Path(__file__).parent / "schema_2.sql"
"""The dump of a store that a gateway recorded into: one trajectory ended, curated and commented on, another under way.
"""


def test_a_store_of_schema_1_is_migrated_and_usable(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))
    connection.close()
    with Store(path) as store:
        read = list(store.trajectories.iterate())
        assert [t.uid for t in read] == [
            "train-000000-0000-00",
            "train-000001-0000-00",
            "train-000002-0000-00",
            "val-0",
        ]
        assert (read[0].status, read[0].reward, read[0].answer) == (Status.COMPLETED, 1.0, "3")
        assert read[0].task.metadata == {"needs": ("search",), "by_year": {7: None}}
        step = read[0].steps[0]
        assert (step.rollout_log_probs, step.text, step.tools) == ((-0.1, -1e-300), "three\ud800", ())
        assert step.metadata == {"x": float("-inf")}
        assert [one.ended_at is None for one in store.trajectories.recorded()] == [False, False, True, True]

        store.trajectories.discard_from(2)  # as a resumed run does
        store.trajectories.begin(
            "train-000002-0000-00", "p", Task(id="t", prompt="q"), "train", train_step=2, group_size=1
        )
        asyncio.run(
            store.trajectories.finish(
                Trajectory(uid="train-000002-0000-00", prompt_uid="p", task=Task(id="t", prompt="q"))
            )
        )
        assert store.groups.counts()["ready"] == 1
    with Store(path) as again:
        assert again.trajectories.count() == 4


def test_a_store_of_schema_2_is_migrated_and_a_server_resumes_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA_2.read_text(encoding="utf-8"))
    connection.close()
    with Store(path) as store:
        [leased] = store.groups.lease("run", 5, "train", 60)
        assert [(t.uid, t.reward, len(t.steps)) for t in leased.trajectories] == [("ended", 1.0, 1)]
        assert (store.annotations.curation("ended")[0].tags, store.annotations.feedback("ended")[0].kind) == (
            ("seen",),
            "thumbs",
        )
        assert store.servers.join("gateway").adopted == ["open"]
        asyncio.run(store.trajectories.finish(Trajectory(uid="open", prompt_uid="p2", task=Task(id="t", prompt="q"))))
    with Store(path) as again:
        assert again.trajectories.get("open").status is Status.COMPLETED
        assert [trajectory.uid for trajectory in again.trajectories.iterate()] == ["ended", "open"]


@pytest.mark.parametrize("old", [SCHEMA_1, SCHEMA_2], ids=["1", "2"])
def test_a_migrated_store_has_the_tables_of_a_new_one(tmp_path: Path, old: Path) -> None:
    def shape(path: Path) -> set[tuple[str, ...]]:
        with sqlite3.connect(path) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {
                (table, *map(str, column[1:]))
                for table in tables
                for column in connection.execute(f"SELECT * FROM pragma_table_info('{table}')")
            }
            indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
            return columns | set(indexes)

    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.executescript(old.read_text(encoding="utf-8"))
    Store(tmp_path / "old.db").close()
    Store(tmp_path / "new.db").close()
    assert shape(tmp_path / "old.db") == shape(tmp_path / "new.db")


def test_constrained_steps_of_an_older_store_keep_their_meaning(database: str) -> None:
    altered = {"sampling": {"constraint": "json_schema"}}
    with Store(database) as store:
        store.trajectories.begin("u", "p", Task(id="t", prompt="q"), "train")
        store.trajectories.append_sync(a_step("u", metadata=altered))

        def age(connection: sa.Connection) -> None:
            for column in ("constraint", "adapter"):
                connection.exec_driver_sql(f'ALTER TABLE steps DROP COLUMN "{column}"')
            connection.exec_driver_sql("UPDATE schemas SET version = 4 WHERE name = 'record'")

        store.database.change(age)
    with Store(database) as store:
        (old,) = store.trajectories.get("u").steps
        assert old.constraint is None and old.metadata == altered
        new = a_step("v", constraint=Constraint(kind="regex", grammar="a+"))
        store.trajectories.append_sync(new)
        assert store.trajectories.get("v").steps == (new,)


def test_a_failed_migration_leaves_the_store_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))
        connection.execute("DROP INDEX trajectories_by_prompt")  # discovered halfway
    before = dump(path)
    with pytest.raises(RunError, match="no such index"):
        Store(path)
    assert dump(path) == before


def test_foreign_tables_are_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("CREATE TABLE groups (mine)")
    for number, (old, table) in enumerate(((SCHEMA_1, "groups"), (SCHEMA_1, "servers"), (SCHEMA_2, "servers"))):
        with sqlite3.connect(tmp_path / f"old-{number}.db") as connection:
            connection.executescript(old.read_text(encoding="utf-8") + f"CREATE TABLE {table} (mine);")
    for path in sorted(tmp_path.iterdir()):
        before = dump(path)
        with pytest.raises(RunError, match="other tables of the same names"):
            Store(path)
        assert dump(path) == before


def dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


@pytest.mark.parametrize(("version", "old"), [(1, SCHEMA_1), (2, SCHEMA_2)])
def test_a_postgresql_store_of_an_older_schema_is_migrated(postgresql_database: str, version: int, old: Path) -> None:
    import psycopg

    created = re.findall(r"CREATE .*?;", old.read_text(encoding="utf-8"), re.DOTALL)
    ddl = "".join(created).replace("BLOB", "BYTEA").replace("id INTEGER NOT NULL", "id SERIAL NOT NULL")
    with psycopg.connect(postgresql_database) as connection:
        connection.execute((ddl + f"INSERT INTO schema_version VALUES ({version})").encode())
    with Store(postgresql_database) as store:
        store.servers.join("gateway")
        store.trajectories.begin("u", "p", Task(id="t", prompt="q"), "train", session={})
        assert store.trajectories.open_uids() == ["u"]
        store.trajectories.append_sync(a_step("u", tools=({"type": "function"},)))
        assert store.trajectories.get("u").steps[0].tools == ({"type": "function"},)


def test_an_unusable_postgresql_server_gives_a_hint(postgresql: str) -> None:
    import psycopg

    with pytest.raises(RunError, match=r"no such database: 'postgresql://.*/nowhere.*\n.*createdb"):
        Store(postgresql.format("nowhere"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RunError, match=r"cannot reach the server: .*\n.*host and port"):
        Store(f"postgresql://me:secret@127.0.0.1:{port}/name")
    with pytest.raises(RunError, match="does not let this user in") as raised:
        Store(postgresql.format("postgres").replace("postgres:@", "nobody:secret@"))
    assert "secret" not in str(raised.value)
    with psycopg.connect(postgresql.format("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
    with pytest.raises(RunError, match=r"the user may not do this: .*\n.*GRANT"):
        Store(postgresql.format("postgres").replace("postgres:@", "reader:@"))


def test_a_wrong_password_is_reported(postgresql: str) -> None:
    import psycopg

    with psycopg.connect(postgresql.format("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        rules = Path(connection.execute("SHOW hba_file").fetchone()[0])  # pyright: ignore[reportOptionalSubscript]
        before = rules.read_text()
        rules.write_text("local all locked scram-sha-256\n" + before)
        connection.execute("SELECT pg_reload_conf()")
        try:
            url = postgresql.format("postgres").replace("postgres:@", "locked:wrong@")
            with pytest.raises(RunError, match=r"does not let this user in: .*\n.*password"):
                Store(url)
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


def test_postgresql_errors_while_recording_are_explained_and_acknowledged_data_stays(
    postgresql_database: str,
) -> None:
    import psycopg

    def admin(sql: str) -> None:
        with psycopg.connect(postgresql_database, autocommit=True) as connection:
            connection.execute(sql.encode())

    with Store(postgresql_database) as store:
        store.trajectories.append_sync(a_step("u", 0))
        # The server raises the error of a full disk.
        admin("""
            CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'No space left on device'; END $$
        """)
        admin("CREATE TRIGGER fails BEFORE INSERT ON steps FOR EACH STATEMENT EXECUTE FUNCTION full_disk()")
        with pytest.raises(RunError, match=r"no room left to record into: .*\n.*free disk space"):
            store.trajectories.append_sync(a_step("u", 1))
        admin("DROP TRIGGER fails ON steps")
        # Connections closed by the server are reopened.
        admin("""
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND datname = current_database()
        """)
        store.trajectories.append_sync(a_step("u", 2))
        assert [step.step_index for step in store.trajectories.get("u").steps] == [0, 2]
        name = postgresql_database.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(postgresql_database.replace(name, "postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        with pytest.raises(RunError, match="no such database"):
            store.trajectories.append_sync(a_step("u", 3))


def test_a_name_too_long_for_postgresql_fails_only_its_caller(postgresql_database: str) -> None:
    async def together(store: Store) -> list[BaseException | None]:
        noise = "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))  # nothing compresses it below a page
        appends = [
            store.trajectories.append(a_step("fine")),
            store.trajectories.append(a_step(noise)),
            store.trajectories.append(a_step("fine", 1)),
        ]
        return await asyncio.gather(*appends, return_exceptions=True)

    with Store(postgresql_database) as store:
        first, second, third = asyncio.run(together(store))
        assert first is None and third is None and isinstance(second, RunError)
        assert len(store.trajectories.get("fine").steps) == 2


def test_a_missing_psycopg_is_named_in_the_error() -> None:
    script = textwrap.dedent("""
        import sys
        sys.modules["psycopg"] = None
        from midstream.record.store import Store
        try:
            Store("postgresql://me@127.0.0.1/name")
        except Exception as error:
            print(type(error).__name__, error)
    """)
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.startswith("RunError") and "pip install 'midstream[postgres]'" in output


def test_frequent_queries_use_indexes(tmp_path: Path) -> None:
    """Whatever a store holds, a call, an end, a lease and a count look at what they are about: by SQLite's own plans.

    Only counting goes through all groups, in an index that has all it needs; and of servers there are few.
    """
    seen: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, context: object, many: bool) -> None:
        seen.append((statement, parameters[0] if many else parameters))

    task = Task(id="t", prompt="q")
    with Store(tmp_path / "store.db") as store:
        store.servers.join("gateway")
        for uid, group in (("u", "p"), ("w", "p"), ("v", "other")):
            store.trajectories.begin(uid, group, task, "train", group_size=2, deadline=0.0, session={})
        store.flush()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            store.trajectories.append_sync(a_step("u"))
            asyncio.run(store.trajectories.finish(Trajectory(uid="u", prompt_uid="p", task=task)))
            assert store.groups.lease("run", 5, "train", -1, min_version=0)
            assert store.groups.lease("run", 5, "train", 60, min_version=0)
            store.groups.renew("run", 60)
            store.groups.consume("run", [("p", "train")], 1)
            store.groups.counts()
            store.groups.counts("train")
            assert store.trajectories.open_uids() == ["v"]
            store.servers.beat()
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    scans: set[str] = set()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        for statement, parameters in seen:
            if statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
                plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                scans |= {detail for *_, detail in plan if re.match(r"SCAN \w", detail) and "CONSTANT" not in detail}
    assert len(seen) > 20
    assert scans == {"SCAN groups USING COVERING INDEX groups_by_state", "SCAN servers"}


def test_a_deleted_or_replaced_file_is_not_written_to(tmp_path: Path) -> None:
    step = Step(prompt_ids=(1,), response_ids=(2,), trajectory_uid="u", prompt_uid="p")
    for replace_it in (False, True):
        path = tmp_path / f"{replace_it}.db"
        with Store(path) as store:
            store.trajectories.append_sync(step)
            if replace_it:
                shutil.copy(path, tmp_path / "copy.db")
            path.unlink()
            if replace_it:
                (tmp_path / "copy.db").rename(path)
            with pytest.raises(RunError, match="was deleted or replaced"):
                store.trajectories.append_sync(step)
