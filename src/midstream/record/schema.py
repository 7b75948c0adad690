"""The store's database: its tables, how it is opened, and how the types of `core` become rows and come back.

Token ids are little-endian int32 blobs and log-probabilities little-endian float64 blobs; everything nested is JSON
text. The round trip is exact: tuples, mappings with keys that are not text, and text that is not valid Unicode all come
back as they went in. What JSON cannot hold is an error where it is written, not a guess.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    event,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from midstream.core.errors import RunError, nearest
from midstream.core.types import FinishReason, Status, Step, Task, ToolCall, Trajectory

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30

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
    Column("created_at", Float, nullable=False),  # seconds since 1970
    Column("task", Text, nullable=False),
    Column("tool_calls", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("rewards", Text, nullable=False),
    Column("reward", Float),
    Column("metadata", Text, nullable=False),
    Index("trajectories_by_channel", "channel", "train_step"),
    Index("trajectories_by_step", "train_step"),
    Index("trajectories_by_prompt", "prompt_uid"),
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
    Index("steps_by_prompt", "prompt_uid"),
)


def open_engine(url_or_path: str | Path, durability: str) -> tuple[sa.Engine, str]:
    """A database with our tables in it, and what to call it in messages. Raises `RunError` when it cannot be used."""
    synchronous = {"full": "FULL", "normal": "NORMAL"}
    if durability not in synchronous:
        raise RunError(f"unknown durability '{durability}'", nearest(durability, synchronous))
    url = _url(url_or_path)
    where = url.render_as_string() if url.database is None or url.get_backend_name() != "sqlite" else url.database
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

        def set_up(connection: Any, record: object) -> None:
            connection.isolation_level = None  # transactions are begun below, not where the driver guesses
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous[durability]}")

        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN"
            )

        event.listen(engine, "connect", set_up)
        event.listen(engine, "begin", begin)
    else:
        engine = sa.create_engine(url)
    try:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            _check_or_create(connection, where)
    except DBAPIError as error:
        engine.dispose()
        raise explained(error, where) from error.orig
    except RunError:
        engine.dispose()
        raise
    return engine, where


def explained(error: DBAPIError, where: str) -> Exception:
    """The `RunError` that tells a user what to do about `error`; `error` itself when it is not theirs to mend."""
    name = str(getattr(error.orig, "sqlite_errorname", ""))
    for prefix, (what, hint) in _SQLITE_ERRORS.items():
        if name.startswith(prefix):
            return RunError(f"{what}: '{where}' ({error.orig})", hint)
    if isinstance(error, OperationalError):
        return RunError(f"the database '{where}' does not answer as it should: {error.orig}", "check that it runs")
    return error


_SQLITE_ERRORS = {
    "SQLITE_FULL": ("no room left to record into", "free disk space, then resume; what was acknowledged is on disk"),
    "SQLITE_NOTADB": ("this is not a database", "name another file, or move this one away"),
    "SQLITE_CORRUPT": ("this database is damaged", "restore it from a copy, or record into another file"),
    "SQLITE_READONLY": ("cannot write", "make the file and its folder writable, or record into another folder"),
    "SQLITE_CANTOPEN": ("cannot open", "the folder must be there and writable, and the path must name a file"),
    "SQLITE_PERM": ("cannot open", "make the file and its folder writable"),
    "SQLITE_BUSY": (f"locked by another process for {BUSY_TIMEOUT_S} s", "end the process that writes to it"),
    "SQLITE_IOERR": ("the disk failed", "check the disk and its free space, then resume"),
}


def _url(url_or_path: str | Path) -> sa.URL:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return sa.URL.create("sqlite", database=str(url_or_path))
    try:
        url = sa.make_url(url_or_path)
    except ArgumentError:
        raise RunError("the URL of the store cannot be read", "for example postgresql://user@host/name") from None
    if url.get_backend_name() not in _INSERT:
        raise RunError(f"no store on '{url.get_backend_name()}'", "use a path, or a postgresql:// URL")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise RunError("a store needs a file", "give the path of one")
    return url


def _check_or_create(connection: sa.Connection, where: str) -> None:
    tables = sa.inspect(connection).get_table_names()
    if schema_version.name in tables:
        version = connection.execute(sa.select(sa.func.max(schema_version.c.version))).scalar_one()
        if version != SCHEMA_VERSION:
            raise RunError(
                f"'{where}' is of another version of Midstream (schema {version}, this one reads {SCHEMA_VERSION})",
                "use the version that wrote it, or record into another file",
            )
        return
    if any(name in tables for name in metadata.tables):
        raise RunError(f"'{where}' holds other tables of the same names", "name another file")
    metadata.create_all(connection)
    connection.execute(schema_version.insert(), [{"version": SCHEMA_VERSION}])


_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def upsert_step(connection: sa.Connection) -> sa.Executable:
    """Insert steps, replacing those that are there."""
    return _upsert(connection.dialect.name, steps, ("trajectory_uid", "step_index"), ())


def upsert_trajectory(connection: sa.Connection) -> sa.Executable:
    """Insert a trajectory, or change the one that is there but for when it was begun."""
    return _upsert(connection.dialect.name, trajectories, ("uid",), ("id", "train_step", "created_at"))


@functools.cache
def _upsert(dialect: str, table: Table, keys: tuple[str, ...], kept: tuple[str, ...]) -> sa.Executable:
    statement = _INSERT[dialect](table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in (*keys, *kept)}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)


def insert_missing_trajectory(connection: sa.Connection) -> sa.Executable:
    """Insert a trajectory unless it is there."""
    return _INSERT[connection.dialect.name](trajectories).on_conflict_do_nothing(index_elements=["uid"])


def step_row(step: Step) -> dict[str, Any]:
    """`step` as a row of `steps`."""
    where = f"step {step.step_index} of trajectory {step.trajectory_uid!r}"
    log_probs = step.rollout_log_probs
    return {
        "trajectory_uid": step.trajectory_uid,
        "step_index": step.step_index,
        "prompt_uid": step.prompt_uid,
        "prompt_ids": _pack_ids(step.prompt_ids),
        "response_ids": _pack_ids(step.response_ids),
        "rollout_log_probs": None if log_probs is None else struct.pack(f"<{len(log_probs)}d", *log_probs),
        "reward": step.reward,
        "policy_version": step.policy_version,
        "is_last": step.is_last,
        "metadata": to_json(step.metadata, f"metadata of {where}"),
        "role": step.role,
        "trainable": step.trainable,
        "parent": step.parent,
        "branch_reason": step.branch_reason,
        "temperature": step.temperature,
        "messages": to_json(step.messages, f"messages of {where}"),
        "text": to_json(step.text, f"text of {where}"),
        "finish_reason": str(step.finish_reason),
        "latency_s": step.latency_s,
    }


def step_from_row(row: RowMapping) -> Step:
    log_probs: bytes | None = row["rollout_log_probs"]
    return Step(
        prompt_ids=_unpack_ids(row["prompt_ids"]),
        response_ids=_unpack_ids(row["response_ids"]),
        rollout_log_probs=None if log_probs is None else struct.unpack(f"<{len(log_probs) // 8}d", log_probs),
        reward=row["reward"],
        trajectory_uid=row["trajectory_uid"],
        prompt_uid=row["prompt_uid"],
        step_index=row["step_index"],
        policy_version=row["policy_version"],
        is_last=row["is_last"],
        metadata=from_json(row["metadata"]),
        role=row["role"],
        trainable=row["trainable"],
        parent=row["parent"],
        branch_reason=row["branch_reason"],
        temperature=row["temperature"],
        messages=from_json(row["messages"]),
        text=from_json(row["text"]),
        finish_reason=_finish_reason(row["finish_reason"]),
        latency_s=row["latency_s"],
    )


def _finish_reason(text: str) -> str:
    return FinishReason(text) if text in FinishReason.__members__.values() else text


def trajectory_row(trajectory: Trajectory) -> dict[str, Any]:
    """`trajectory` without its steps as a row of `trajectories`; the store adds channel, train_step, created_at."""
    where = f"trajectory {trajectory.uid!r}"
    task = trajectory.task
    calls = [
        {
            "tool": call.tool,
            "arguments": call.arguments,
            "ok": call.ok,
            "result": call.result,
            "error_kind": call.error_kind,
            "latency_s": call.latency_s,
            "step_index": call.step_index,
            "unmasked": call.unmasked,
        }
        for call in trajectory.tool_calls
    ]
    task_fields = {
        "id": task.id,
        "prompt": task.prompt,
        "answer": task.answer,
        "kind": task.kind,
        "split": task.split,
        "metadata": task.metadata,
    }
    return {
        "uid": trajectory.uid,
        "prompt_uid": trajectory.prompt_uid,
        "status": str(trajectory.status),
        "task": to_json(task_fields, f"task of {where}"),
        "tool_calls": to_json(calls, f"tool calls of {where}"),
        "answer": to_json(trajectory.answer, f"answer of {where}"),
        "turns": trajectory.turns,
        "error": to_json(trajectory.error, f"error of {where}"),
        "rewards": to_json(trajectory.rewards, f"rewards of {where}"),
        "reward": trajectory.reward,
        "metadata": to_json(trajectory.metadata, f"metadata of {where}"),
    }


def trajectory_from_row(row: RowMapping, steps_of_it: Sequence[Step]) -> Trajectory:
    return Trajectory(
        uid=row["uid"],
        prompt_uid=row["prompt_uid"],
        task=Task(**from_json(row["task"])),
        steps=tuple(steps_of_it),
        tool_calls=tuple(ToolCall(**call) for call in from_json(row["tool_calls"])),
        answer=from_json(row["answer"]),
        turns=row["turns"],
        status=Status(row["status"]),
        error=from_json(row["error"]),
        rewards=from_json(row["rewards"]),
        reward=row["reward"],
        metadata=from_json(row["metadata"]),
    )


def to_json(value: Any, where: str) -> str:
    """`value` as JSON text; `RunError` naming `where` when it holds something that could not be read back the same."""
    text = json.dumps(_tagged(value, where), ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which a database does not take but a \u escape carries
        return json.dumps(_tagged(value, where), separators=(",", ":"))
    return text


def from_json(text: str) -> Any:
    return json.loads(text, object_hook=_untagged)


def _tagged(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_tagged(item, where) for item in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return {"!tuple": [_tagged(item, where) for item in cast("tuple[Any, ...]", value)]}
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        if all(isinstance(key, str) and not key.startswith("!") for key in mapping):
            return {str(key): _tagged(item, where) for key, item in mapping.items()}
        return {"!dict": [[_tagged(key, where), _tagged(item, where)] for key, item in mapping.items()]}
    raise RunError(
        f"cannot record the {where}: it holds a {type(value).__name__}",
        "use text, numbers, true/false, None, and lists, tuples or mappings of these",
    )


def _untagged(data: dict[str, Any]) -> Any:
    if len(data) == 1:
        if "!tuple" in data:
            return tuple(data["!tuple"])
        if "!dict" in data:
            return {key: item for key, item in data["!dict"]}
    return data


def _pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def _unpack_ids(blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // 4}i", blob)
