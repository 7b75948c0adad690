"""A cache of model replies, so that a search evaluates the same call once.

The key is the model, the messages, and every sampling parameter with its seed. Failures are not cached. Equal calls
that run at the same time share one reply.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from midstream.core.errors import UserError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.workflows.model import Model, ModelReply


class ResponseCache:
    """Replies by key, in memory or in a file that later runs read. Used on one event loop."""

    def __init__(self, path: Path | None = None) -> None:
        try:
            self._database = sqlite3.connect(":memory:" if path is None else str(path))
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise UserError(f"cannot open the response cache '{path}': {error}", "give another file") from None
        self._running: dict[str, asyncio.Future[ModelReply]] = {}
        self.hits = self.misses = 0

    def get(self, key: str) -> ModelReply | None:
        row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else ModelReply(**json.loads(row[0]))

    def put(self, key: str, reply: ModelReply) -> None:
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(asdict(reply))))

    def close(self) -> None:
        self._database.close()

    async def ask(self, model: Model, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """The reply of `model`, from the cache if it is there. A cached reply keeps its tokens and cost, and has
        `cached` set."""
        key = key_of(model.name, messages, sampling)
        while (running := self._running.get(key)) is not None:
            await asyncio.wait([running])
        found = self.get(key)
        if found is not None:
            self.hits += 1
            return replace(found, cached=True, latency_s=0.0)
        self.misses += 1
        asked: asyncio.Future[ModelReply] = asyncio.get_running_loop().create_future()
        self._running[key] = asked
        try:
            reply = await model.ask(messages, sampling)
            self.put(key, reply)
            return reply
        finally:
            del self._running[key]
            asked.cancel()


class CachedModel:
    """A model with a cache before it."""

    def __init__(self, model: Model, cache: ResponseCache) -> None:
        self.name, self._model, self._cache = model.name, model, cache

    async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        return await self._cache.ask(self._model, messages, sampling)


def key_of(model: str, messages: Sequence[Message], sampling: SamplingParams) -> str:
    """The key of a call."""
    text = json.dumps([model, list(messages), asdict(sampling)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
