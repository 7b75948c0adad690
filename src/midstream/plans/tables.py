"""Tables of the journal.

`plan_events` is the truth: append-only, numbered per run. `plan_runs`, `plan_nodes` and `plan_steps` hold what the
events add up to (`history.fold`), written in the same transactions, for fast reads. A payload column holds JSON text,
or `@` and the SHA-256 of a row of `plan_blobs`. Times are seconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from midstream.store.schema import Schema

metadata = MetaData()

runs = Table(
    "plan_runs",
    metadata,
    Column("uid", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("status", String, nullable=False),
    Column("seq", BigInteger, nullable=False),  # of its newest event
    Column("plan", String, nullable=False),  # payload
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("parent", String),  # the run it was forked from
    Column("data", Text, nullable=False),
    Index("plan_runs_by_status", "status", "ended_at"),
    Index("plan_runs_by_parent", "parent"),
)

nodes = Table(
    "plan_nodes",
    metadata,
    Column("run", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("handler", String, nullable=False),
    Column("starts", Integer, nullable=False),
    Column("output", Text, nullable=False),  # payload
    Column("error", Text, nullable=False),
    Column("data", Text, nullable=False),
)

steps = Table(
    "plan_steps",
    metadata,
    Column("run", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("scope", String, primary_key=True),  # generation and fallback of the node
    Column("key", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("id", String, nullable=False),
    Column("value", Text, nullable=False),  # payload
    Column("data", Text, nullable=False),
    Index("plan_steps_by_id", "id"),
    Index("plan_steps_by_state", "kind", "state"),
)

events = Table(
    "plan_events",
    metadata,
    Column("run", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("path", String, nullable=False),
    Column("data", Text, nullable=False),
)

inbox = Table(
    "plan_inbox",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("target", String, nullable=False),
    Column("data", Text, nullable=False),
    Column("at", Float, nullable=False),
    UniqueConstraint("run", "kind", "target"),
    Index("plan_inbox_by_run", "run"),
)

blobs = Table(
    "plan_blobs",
    metadata,
    Column("hash", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

blob_users = Table(
    "plan_blob_users",
    metadata,
    Column("run", String, primary_key=True),
    Column("hash", String, primary_key=True),
    Index("plan_blob_users_by_hash", "hash"),
)

SCHEMA = Schema("plans", metadata)
