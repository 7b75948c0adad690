"""The store's tables, and how a database comes to have them: made new, or brought up from an older version.

Token ids are little-endian int32 blobs and log-probabilities little-endian float64 blobs; columns of type `Text` hold
JSON text (`exact_json`). Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

from midstream.core.errors import RunError

T = TypeVar("T")

SCHEMA_VERSION = 3
MOST_VALUES = 1000
"""How many values a statement that we write is given at most."""
WHOLE = -1
"""The `step_index` under which what is said of a whole trajectory stands."""

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

trajectories = Table(
    "trajectories",
    metadata,
    Column("id", Integer, primary_key=True),  # the order they were begun in
    Column("uid", String, nullable=False, unique=True),
    Column("prompt_uid", String, nullable=False),
    Column("channel", String, nullable=False),
    Column("train_step", Integer),
    Column("status", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("task", Text, nullable=False),
    Column("tool_calls", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("rewards", Text, nullable=False),
    Column("reward", Float),
    Column("metadata", Text, nullable=False),
    Column("session", Text),
    Column("server", String),  # that holds it while it runs
    Index("trajectories_by_channel", "channel", "train_step"),
    Index("trajectories_by_step", "train_step"),
    Index("trajectories_by_group", "prompt_uid", "channel", "status"),
    Index("trajectories_by_status", "status", "ended_at"),
)

steps = Table(
    "steps",
    metadata,
    Column("trajectory_uid", String, primary_key=True),
    Column("step_index", Integer, primary_key=True, autoincrement=False),
    Column("prompt_uid", String, nullable=False),
    Column("prompt_ids", LargeBinary, nullable=False),
    Column("response_ids", LargeBinary, nullable=False),
    Column("rollout_log_probs", LargeBinary),
    Column("reward", Float),
    Column("policy_version", Integer, nullable=False),
    Column("is_last", Boolean, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("role", String, nullable=False),
    Column("trainable", Boolean, nullable=False),
    Column("parent", Integer),
    Column("branch_reason", String, nullable=False),
    Column("temperature", Float, nullable=False),
    Column("messages", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("finish_reason", String, nullable=False),
    Column("latency_s", Float, nullable=False),
    Column("tools", Text, nullable=False, server_default='{"!tuple":[]}'),
    Index("steps_by_prompt", "prompt_uid"),
)

groups = Table(
    "groups",
    metadata,
    Column("prompt_uid", String, primary_key=True),
    Column("channel", String, primary_key=True),
    Column("size", Integer),
    Column("deadline", Float),
    Column("state", String, nullable=False),
    Column("ended", Integer, nullable=False),  # how many of its trajectories have
    Column("ready_at", Float),
    Column("owner", String),
    Column("lease_until", Float),
    Column("train_step", Integer),  # that consumed it
    # Holds all that counting and leasing look at.
    Index("groups_by_state", "channel", "state", "ready_at", "deadline", "ended", "lease_until"),
    Index("groups_by_owner", "owner", "state"),
)

curation = Table(
    "curation",
    metadata,
    Column("trajectory_uid", String, primary_key=True),
    Column("step_index", Integer, primary_key=True, autoincrement=False),  # or WHOLE
    Column("trainable", Boolean),
    Column("quality", String, nullable=False),
    Column("note", Text, nullable=False),
    Index("curation_by_quality", "quality"),
)

tags = Table(
    "tags",
    metadata,
    Column("trajectory_uid", String, primary_key=True),
    Column("step_index", Integer, primary_key=True, autoincrement=False),  # or WHOLE
    Column("tag", String, primary_key=True),
    Index("tags_by_tag", "tag"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trajectory_uid", String, nullable=False),
    Column("step_index", Integer),
    Column("kind", String, nullable=False),
    Column("value", Float),
    Column("text", Text, nullable=False),
    Column("key", String),
    Column("created_at", Float, nullable=False),
    sa.UniqueConstraint("trajectory_uid", "key"),
)

servers = Table(
    "servers",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("alive_at", Float, nullable=False),
)

_SINCE_2 = (groups, curation, tags, feedback)
_SINCE_3 = (servers,)


def parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items` in parts that fit into one statement: databases limit how many values one may be given."""
    for start in range(0, len(items), MOST_VALUES):
        yield items[start : start + MOST_VALUES]


def create_or_upgrade(connection: sa.Connection, where: str) -> None:
    """Make the tables, or bring those of an older version up to this one, in the transaction of `connection`.

    Raises `RunError` for a newer version, and for tables of the same names that are not ours.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('midstream'))")  # one process at a time
    tables = sa.inspect(connection).get_table_names()
    if schema_version.name not in tables:
        _make(metadata.sorted_tables, connection, where)
        connection.execute(schema_version.insert(), [{"version": SCHEMA_VERSION}])
        return
    version = connection.execute(sa.select(sa.func.max(schema_version.c.version))).scalar_one()
    if version not in range(1, SCHEMA_VERSION + 1):
        raise RunError(
            f"'{where}' is of another version of Midstream (schema {version}, this one reads {SCHEMA_VERSION})",
            "use the version that wrote it, or record into another file",
        )
    if version < 2:
        _upgrade_from_1(connection)
        _make(_SINCE_2, connection, where)
    if version < 3:
        _add(connection, trajectories, "server")
        _make(_SINCE_3, connection, where)
    if version < SCHEMA_VERSION:
        connection.execute(schema_version.update().values(version=SCHEMA_VERSION))


def _upgrade_from_1(connection: sa.Connection) -> None:
    for table, column in ((steps, "tools"), (trajectories, "ended_at"), (trajectories, "session")):
        _add(connection, table, column)
    # When they ended was not kept; they were begun no later.
    ended = trajectories.c.status != "running"
    connection.execute(trajectories.update().where(ended).values(ended_at=trajectories.c.created_at))
    connection.exec_driver_sql("DROP INDEX trajectories_by_prompt")
    new = {"trajectories_by_group", "trajectories_by_status"}
    for index in trajectories.indexes:
        if index.name in new:
            index.create(connection)


def _add(connection: sa.Connection, table: Table, column: str) -> None:
    definition = sa.schema.CreateColumn(table.c[column]).compile(dialect=connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")


def _make(tables: Sequence[Table], connection: sa.Connection, where: str) -> None:
    there = sa.inspect(connection).get_table_names()
    if any(table.name in there for table in tables):
        raise RunError(f"'{where}' holds other tables of the same names", "name another file or database")
    for table in tables:
        table.create(connection)
