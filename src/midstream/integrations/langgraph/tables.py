"""Tables of LangGraph's checkpoints.

A checkpoint's row holds everything but the values of its channels. `channels` maps each name to version and digest, and
`langgraph_values` holds each distinct value of a thread once, so that what a step did not change takes no space.
Bodies are in the format `type` of LangGraph's serializer.
"""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

from midstream.store.schema import Schema

metadata = MetaData()

checkpoints = Table(
    "langgraph_checkpoints",
    metadata,
    Column("thread", String, primary_key=True),
    Column("namespace", String, primary_key=True),
    Column("id", String, primary_key=True),
    Column("parent", String),
    Column("run", String),
    Column("type", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("metadata_type", String, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("channels", Text, nullable=False),  # JSON: {name: [version, digest]}
    Index("langgraph_checkpoints_by_run", "run"),
)

values = Table(
    "langgraph_values",
    metadata,
    Column("thread", String, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("type", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

writes = Table(
    "langgraph_writes",
    metadata,
    Column("thread", String, primary_key=True),
    Column("namespace", String, primary_key=True),
    Column("checkpoint", String, primary_key=True),
    Column("task", String, primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("path", String, nullable=False),
    Column("channel", String, nullable=False),
    Column("type", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

SCHEMA = Schema("langgraph", metadata)
