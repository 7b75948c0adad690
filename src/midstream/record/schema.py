"""Tables of recorded trajectories.

Token ids are little-endian int32 blobs and log-probabilities little-endian float64 blobs; columns of type `Text` hold
JSON text (`exact_json`). Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

from midstream.store.schema import Schema, add_column, make

WHOLE = -1
"""`step_index` of annotations of a whole trajectory."""

metadata = MetaData()

trajectories = Table(
    "trajectories",
    metadata,
    Column("id", Integer, primary_key=True),  # in the order they were begun
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
    Column("server", String),  # holds it while it runs
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
    Column("constraint", Text),  # see `Step.constraint`
    Column("adapter", String, nullable=False, server_default=""),
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
    Column("ended", Integer, nullable=False),  # number of its trajectories that have ended
    Column("ready_at", Float),
    Column("owner", String),
    Column("lease_until", Float),
    Column("train_step", Integer),  # consumed it
    # Covers all columns used for counting and leasing.
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


def _upgrade_to_2(connection: sa.Connection) -> None:
    for table, column in ((steps, "tools"), (trajectories, "ended_at"), (trajectories, "session")):
        add_column(connection, table, column)
    # End times were not stored; start times are a lower bound.
    ended = trajectories.c.status != "running"
    connection.execute(trajectories.update().where(ended).values(ended_at=trajectories.c.created_at))
    connection.exec_driver_sql("DROP INDEX trajectories_by_prompt")
    new = {"trajectories_by_group", "trajectories_by_status"}
    for index in trajectories.indexes:
        if index.name in new:
            index.create(connection)
    make(connection, (groups, curation, tags, feedback), "the store")


def _upgrade_to_3(connection: sa.Connection) -> None:
    add_column(connection, trajectories, "server")


def _upgrade_to_4(connection: sa.Connection) -> None:
    connection.exec_driver_sql("DROP TABLE schema_version")  # replaced by the table `schemas`


def _upgrade_to_5(connection: sa.Connection) -> None:
    # Older steps have none: their log-probabilities are over the whole vocabulary.
    add_column(connection, steps, "constraint")


def _upgrade_to_6(connection: sa.Connection) -> None:
    add_column(connection, steps, "adapter")


def _unregistered(connection: sa.Connection, tables: Sequence[str]) -> int | None:
    if "schema_version" not in tables:
        return None
    return connection.exec_driver_sql("SELECT max(version) FROM schema_version").scalar_one()


SCHEMA = Schema(
    "record",
    metadata,
    6,
    {2: _upgrade_to_2, 3: _upgrade_to_3, 4: _upgrade_to_4, 5: _upgrade_to_5, 6: _upgrade_to_6},
    unregistered=_unregistered,
)
