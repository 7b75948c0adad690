"""`memory_retrieve` and `memory_store`: long-term memory as tools, so that its use is an action of the agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.core.toolsets import ToolContent, ToolExample, ToolPolicy, ToolResult, ToolSpec
from midstream.memory.embedding import load_embedder
from midstream.memory.initial import fill, temporary_database
from midstream.memory.long_term import LongTermMemory
from midstream.store.database import Database
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.shared import SharedResources


class MemorySettings(Config):
    """`flow.tool_settings.memory_retrieve`."""

    database: str | None = None
    """SQLite file or database URL that holds the memory. None: a temporary database for `records`, removed when the
    process ends."""
    records: str | None = None
    """Initial memories: a JSON-lines file with `text` and optionally `key`, `source` and `importance`; or
    `package.module:attribute`, a list of such records or a function that returns one. Added once per process; a memory
    that has the key of a record already stays as it is."""
    namespace: str
    """Namespace of the memories. Agents see only their own namespace; trajectories with the same namespace share a
    memory."""
    k: int = Field(default=3, ge=1)
    """Number of memories in a result."""
    embedder: str = "hashing"
    """`hashing` (needs no model), `minilm` (the sentence encoder all-MiniLM-L6-v2, offline; extra `classify`), `none`
    (words only), or your own as `package.module:attribute`."""
    write: bool = False
    """Whether the agent may also store memories, with the tool `memory_store`. Other trajectories of the namespace read
    them, so attempts at a task are no longer independent, and `trainer.deterministic` refuses it. Attempts at
    validation and test tasks store memories too."""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.database is None and self.records is None:
            raise ValueError("set database, records or both")
        return self


RETRIEVE = ToolSpec(
    name="memory_retrieve",
    description="Recall what is in long-term memory: by key, or by what it is about.",
    parameters={
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what to recall"},
            "key": {"type": "string", "description": "the exact key, if it is known"},
        },
        "additionalProperties": False,
    },
    policy=ToolPolicy(idempotent=True),
    returns="memories",
    limits=("knows only what was stored in its own namespace",),
    best_practices=("give the key if you know it, else the names and numbers it must contain",),
    examples=(ToolExample(arguments={"query": "the customer's address"}),),
)
STORE = ToolSpec(
    name="memory_store",
    description="Remember something for later.",
    parameters={
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "key": {"type": "string", "description": "to recall it by"},
            "importance": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["text"],
        "additionalProperties": False,
    },
    returns="ok",
    limits=("a memory with a key replaces the one before",),
    best_practices=("store one fact at a time, as a whole sentence",),
    examples=(ToolExample(arguments={"text": "The customer prefers e-mail.", "importance": 0.8}),),
)


class MemoryToolset:
    """Long-term memory as tools. Uses `memory` if given; else opens a database, which concurrent trajectories share."""

    def __init__(self, settings: MemorySettings, memory: LongTermMemory | None = None) -> None:
        self._settings = settings
        self._existing = memory
        self._memory = memory

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools."""
        return (RETRIEVE, STORE) if self._settings.write else (RETRIEVE,)

    @property
    def memory(self) -> LongTermMemory:
        """The memory. Available after `open`."""
        assert self._memory is not None, "the toolset is not open"
        return self._memory

    async def open(self) -> None:
        if self._existing is not None:
            return
        where = self._where()
        database = await _databases.acquire(where, lambda: asyncio.to_thread(Database, where))
        try:
            embedder = load_embedder(self._settings.embedder)
            memory = await asyncio.to_thread(LongTermMemory, database, self._settings.namespace, embedder)
            if (records := self._settings.records) is not None:
                await _fillings.acquire(self._filling(), lambda: fill(memory, where, records))
        except BaseException:
            await _databases.release(where)
            raise
        self._memory = memory

    async def list(self) -> Sequence[ToolSpec]:
        return self.specs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        memory = self.memory
        if name == STORE.name:
            importance = float(arguments.get("importance", 0.5))
            key = arguments.get("key")
            await memory.add(arguments["text"], key=key, source="agent", importance=importance)
            return ToolResult.of("remembered")
        key, query = arguments.get("key"), arguments.get("query")
        if not key and not query:
            raise ToolError("give a query or a key")
        found = await memory.get(key) if key else None
        memories = [found] if found else await memory.retrieve(query or key or "", self._settings.k)
        if not memories:
            raise ToolError("nothing is remembered about that")
        return ToolResult(
            tuple(ToolContent(kind="text", text=one.text, source=", ".join(one.sources)) for one in memories)
        )

    async def close(self) -> None:
        if self._existing is not None:
            return
        if self._settings.records is not None:
            await _fillings.release(self._filling())
        await _databases.release(self._where())

    def _where(self) -> str:
        settings = self._settings
        return settings.database or temporary_database(f"{settings.records}")

    def _filling(self) -> str:
        return json.dumps([self._where(), self._settings.namespace, self._settings.records])


async def _forget(filled: None) -> None: ...


_databases: SharedResources[Database] = SharedResources(lambda database: asyncio.to_thread(database.close))
_fillings: SharedResources[None] = SharedResources(_forget)
memory_retrieve = ToolKind(MemorySettings, MemoryToolset)
