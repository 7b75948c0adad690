"""langchain-tests: long-term memory with keys, as a LangChain key-value store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from langchain_core.stores import BaseStore
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests

from midstream.memory.long_term import LongTermMemory
from midstream.store import Database


class MemoryStore(BaseStore[str, str]):
    def __init__(self, memory: LongTermMemory) -> None:
        self.memory = memory

    async def amget(self, keys: Sequence[str]) -> list[str | None]:
        found = [await self.memory.get(key) for key in keys]
        return [None if one is None else one.text for one in found]

    async def amset(self, key_value_pairs: Sequence[tuple[str, str]]) -> None:
        for key, value in key_value_pairs:
            await self.memory.add(value, key=key)

    async def amdelete(self, keys: Sequence[str]) -> None:
        found = [await self.memory.get(key) for key in keys]
        await self.memory.forget(*(one.id for one in found if one is not None))

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        for key in await self.memory.keys(prefix or ""):
            yield key

    def mget(self, keys: Sequence[str]) -> list[str | None]:
        return asyncio.run(self.amget(keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, str]]) -> None:
        asyncio.run(self.amset(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        asyncio.run(self.amdelete(keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        yield from asyncio.run(self.memory.keys(prefix or ""))


class Fixtures:
    @pytest.fixture
    def kv_store(self, database: str) -> Iterator[MemoryStore]:
        with Database(database, "normal") as opened:
            yield MemoryStore(LongTermMemory(opened, "suite"))

    @pytest.fixture
    def three_values(self) -> tuple[str, str, str]:
        return "a rainy day", "a sunny day", "100 % snow_flakes"


class TestMemory(Fixtures, BaseStoreSyncTests[str]):
    pass


class TestMemoryAsync(Fixtures, BaseStoreAsyncTests[str]):
    pass
