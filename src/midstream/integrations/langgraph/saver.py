"""`StoreSaver`: a LangGraph checkpointer on our store, sync and async, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from midstream.integrations.langgraph import rows
from midstream.integrations.langgraph.rows import Channels, Key, Loaded, Row
from midstream.integrations.langgraph.tables import SCHEMA
from midstream.store import Database, Transaction

T = TypeVar("T")
Config = Any
"""LangChain's `RunnableConfig`."""
RECENT = 1000
"""Checkpoints of which the digests are remembered, so that unchanged values are not serialized again."""


class StoreSaver(BaseCheckpointSaver[str]):
    """Checkpoints in `database`, which other data of Midstream may share. What `put` and `put_writes` returned for is
    durable as `Database` says.

        with Database("agents.sqlite") as database:
            graph = builder.compile(checkpointer=StoreSaver(database))

    Values may be of LangGraph's safe types (JSON, dates, UUIDs, LangChain's messages and the like). Others are not
    created again when a checkpoint is read: name them in `allowed`, as `("package.module", "Class")`. `serde` replaces
    the serializer as a whole."""

    def __init__(
        self,
        database: Database,
        *,
        allowed: Iterable[tuple[str, str]] = (),
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde or JsonPlusSerializer(allowed_msgpack_modules=list(allowed) or None))
        database.require(SCHEMA)
        self.database = database
        self._recent: OrderedDict[Key, Channels] = OrderedDict()
        self._lock = threading.Lock()

    def get_tuple(self, config: Config) -> CheckpointTuple | None:
        found = self.database.read(lambda connection: self._find(connection, config))
        return None if found is None else self._tuple(found)

    async def aget_tuple(self, config: Config) -> CheckpointTuple | None:
        return await asyncio.to_thread(self.get_tuple, config)

    def list(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        for key in self._keys(config, filter, before, limit):
            found = self.database.read(lambda connection, key=key: rows.load(connection, key))
            if found is not None:  # else it was deleted meanwhile
                yield self._tuple(found)

    async def alist(
        self,
        config: Config | None,
        *,
        filter: dict[str, Any] | None = None,
        before: Config | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        for key in await asyncio.to_thread(self._keys, config, filter, before, limit):
            found = await asyncio.to_thread(self.database.read, lambda connection, key=key: rows.load(connection, key))
            if found is not None:
                yield self._tuple(found)

    def put(
        self, config: Config, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> Config:
        key = Key(*_place(config), checkpoint["id"])
        for known in (True, False):
            row, new, reused = self._serialized(key, config, checkpoint, metadata, new_versions, known)
            if self.database.change(lambda connection, put=(row, new, reused): rows.put(connection, *put)):
                break
        return _config(key)

    async def aput(
        self, config: Config, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> Config:
        key = Key(*_place(config), checkpoint["id"])
        for known in (True, False):
            row, new, reused = self._serialized(key, config, checkpoint, metadata, new_versions, known)
            if await self._change(lambda connection, put=(row, new, reused): rows.put(connection, *put)):
                break
        return _config(key)

    def put_writes(self, config: Config, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        if operation := self._writing(config, writes, task_id, task_path):
            self.database.change(operation)

    async def aput_writes(
        self, config: Config, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        if operation := self._writing(config, writes, task_id, task_path):
            await self._change(operation)

    def delete_thread(self, thread_id: str) -> None:
        self.database.change(lambda connection: rows.delete_threads(connection, [str(thread_id)]))

    async def adelete_thread(self, thread_id: str) -> None:
        await self._change(lambda connection: rows.delete_threads(connection, [str(thread_id)]))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self.database.change(lambda connection: rows.delete_runs(connection, list(map(str, run_ids))))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._change(lambda connection: rows.delete_runs(connection, list(map(str, run_ids))))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self.database.change(lambda c: rows.copy_thread(c, str(source_thread_id), str(target_thread_id)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._change(lambda c: rows.copy_thread(c, str(source_thread_id), str(target_thread_id)))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self.database.change(self._pruning(thread_ids, strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._change(self._pruning(thread_ids, strategy))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """A version greater than `current`. Its random part keeps branches of a thread apart."""
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{secrets.token_hex(8)}"

    async def _change(self, change: Callable[[sa.Connection], T]) -> T:
        def operation(transaction: Transaction) -> T:
            return change(transaction.connection)

        return await self.database.submit(operation)

    def _find(self, connection: sa.Connection, config: Config) -> Loaded | None:
        thread, namespace = _place(config)
        wanted = get_checkpoint_id(config)
        key = Key(thread, namespace, wanted) if wanted else rows.latest(connection, thread, namespace)
        return None if key is None else rows.load(connection, key)

    def _keys(
        self, config: Config | None, filter: Mapping[str, Any] | None, before: Config | None, limit: int | None
    ) -> Sequence[Key]:
        def keep(row: Any) -> bool:
            if not filter:
                return True
            metadata = self.serde.loads_typed((row.metadata_type, row.metadata))
            return all(metadata.get(name) == value for name, value in filter.items())

        configurable = {} if config is None else config["configurable"]
        thread = configurable.get("thread_id")
        return self.database.read(
            lambda connection: rows.keys(
                connection,
                keep,
                thread=None if thread is None else str(thread),
                namespace=configurable.get("checkpoint_ns"),
                checkpoint=None if config is None else get_checkpoint_id(config),
                before=None if before is None else get_checkpoint_id(before),
                limit=limit,
            )
        )

    def _tuple(self, loaded: Loaded) -> CheckpointTuple:
        row = loaded.row
        key = Key(row.thread, row.namespace, row.id)
        self._remember(key, loaded.channels)
        checkpoint = self.serde.loads_typed((row.type, row.body))
        checkpoint["channel_values"] = {
            name: self.serde.loads_typed((loaded.values[digest].type, loaded.values[digest].body))
            for name, (_, digest) in loaded.channels.items()
        }
        return CheckpointTuple(
            _config(key),
            cast(Checkpoint, checkpoint),
            cast(CheckpointMetadata, self.serde.loads_typed((row.metadata_type, row.metadata))),
            _config(key._replace(id=row.parent)) if row.parent else None,
            [(one.task, one.channel, self.serde.loads_typed((one.type, one.body))) for one in loaded.writes],
        )

    def _serialized(
        self,
        key: Key,
        config: Config,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        use_known: bool,
    ) -> tuple[Row, Sequence[Row], Sequence[str]]:
        """The checkpoint's row, the rows of its values, and the digests of values that its parent has too."""
        parent = config["configurable"].get("checkpoint_id")
        before = self._recent.get(key._replace(id=parent), {}) if parent and use_known else {}
        channels: dict[str, tuple[Any, str]] = {}
        new: dict[str, Row] = {}
        reused: set[str] = set()
        for name, value in checkpoint["channel_values"].items():
            version = checkpoint["channel_versions"].get(name)
            if name not in new_versions and name in before and before[name][0] == version:
                channels[name] = before[name]
                reused.add(before[name][1])
                continue
            kind, body = self.serde.dumps_typed(value)
            digest = hashlib.sha256(kind.encode() + b"\0" + body).hexdigest()
            channels[name] = (version, digest)
            new[digest] = {"thread": key.thread, "digest": digest, "type": kind, "body": body}
        kept = get_serializable_checkpoint_metadata(config, metadata)
        kind, body = self.serde.dumps_typed({**checkpoint, "channel_values": {}})
        metadata_type, metadata_body = self.serde.dumps_typed(kept)
        row = {
            **key._asdict(),
            "parent": parent,
            "run": None if kept.get("run_id") is None else str(kept.get("run_id")),
            "type": kind,
            "body": body,
            "metadata_type": metadata_type,
            "metadata": metadata_body,
            "channels": json.dumps(channels),
        }
        self._remember(key, channels)
        return row, list(new.values()), sorted(reused - set(new))

    def _writing(
        self, config: Config, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Callable[[sa.Connection], None] | None:
        """The operation that stores `writes`; None if there are none."""
        thread, namespace = _place(config)
        found: list[Row] = []
        for place, (channel, value) in enumerate(writes):
            kind, body = self.serde.dumps_typed(value)
            found.append(
                {
                    "thread": thread,
                    "namespace": namespace,
                    "checkpoint": str(config["configurable"]["checkpoint_id"]),
                    "task": task_id,
                    "place": WRITES_IDX_MAP.get(channel, place),
                    "path": task_path,
                    "channel": channel,
                    "type": kind,
                    "body": body,
                }
            )
        replace = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        return (lambda connection: rows.put_writes(connection, found, replace=replace)) if found else None

    def _pruning(self, thread_ids: Sequence[str], strategy: str) -> Callable[[sa.Connection], None]:
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"strategy is 'keep_latest' or 'delete', not {strategy!r}")
        threads = list(map(str, thread_ids))

        def replayed(row: Any) -> Iterable[str]:
            metadata = self.serde.loads_typed((row.metadata_type, row.metadata))
            return metadata.get("counters_since_delta_snapshot", ())

        def change(connection: sa.Connection) -> None:
            if strategy == "delete":
                rows.delete_threads(connection, threads)
                return
            for thread in threads:
                if unwanted := rows.all_but_latest(connection, thread, replayed):
                    rows.delete(connection, unwanted)

        return change

    def _remember(self, key: Key, channels: Channels) -> None:
        with self._lock:
            self._recent[key] = channels
            self._recent.move_to_end(key)
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)


def _place(config: Config) -> tuple[str, str]:
    configurable = config["configurable"]
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns", "")


def _config(key: Key) -> Config:
    return {"configurable": {"thread_id": key.thread, "checkpoint_ns": key.namespace, "checkpoint_id": key.id}}
