"""`memory_retrieve` and `memory_store`: long-term memory as tools, so that its use is an action of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from midstream.core.config import Config
from midstream.core.toolsets import ToolContent, ToolExample, ToolPolicy, ToolResult, ToolSpec
from midstream.memory.embedding import load_embedder
from midstream.memory.long_term import LongTermMemory
from midstream.store.database import Database
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.shared import SharedResources


class MemorySettings(Config):
    """`flow.tool_settings.memory_retrieve`."""

    database: str
    """SQLite file or database URL that holds the memory."""
    namespace: str
    """Namespace of the memories. Agents see only their own namespace; trajectories with the same namespace share a
    memory."""
    k: int = Field(default=3, ge=1)
    """Number of memories in a result."""
    embedder: str = "hashing"
    """`hashing` (needs no model), `none` (words only), or your own as `package.module:attribute`."""
    write: bool = False
    """Whether the agent may also store memories, with the tool `memory_store`. Other trajectories of the namespace read
    them, so attempts at a task are no longer independent, and `trainer.deterministic` refuses it. Attempts at
    validation and test tasks store memories too."""


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
    examples=(ToolExample(arguments={"text": "The customer prefers e-mail.", "importance": 0.8}),),
)


class MemoryToolset:
    """Long-term memory as tools. Uses `memory` if given; else opens a database, which concurrent trajectories share."""

    def __init__(self, settings: MemorySettings, memory: LongTermMemory | None = None) -> None:
        self._settings = settings
        self._given = memory
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
        if self._given is None:
            where = self._settings.database
            database = await _databases.acquire(where, lambda: asyncio.to_thread(Database, where))
            try:
                embedder = load_embedder(self._settings.embedder)
                self._memory = await asyncio.to_thread(LongTermMemory, database, self._settings.namespace, embedder)
            except BaseException:
                await _databases.release(where)
                raise

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
        if self._given is None:
            await _databases.release(self._settings.database)


async def _close(database: Database) -> None:
    await asyncio.to_thread(database.close)


_databases: SharedResources[Database] = SharedResources(_close)
memory_retrieve = ToolKind(MemorySettings, MemoryToolset)
