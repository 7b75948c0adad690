"""The embedder `minilm` with its real weights: texts of similar meaning are found, whatever their words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from midstream.memory.embedding import load_embedder
from midstream.memory.long_term import LongTermMemory
from midstream.store.database import Database

pytestmark = pytest.mark.environments
MEMORIES = [
    "The car broke down on the motorway.",
    "Refunds are paid within two weeks.",
    "The cat sleeps on the sofa all day.",
    "Our office opens at nine in the morning.",
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("an automobile with engine trouble", 0),
        ("When do I get my money back?", 1),
        ("a lazy pet", 2),
        ("At what time does work start?", 3),
    ],
)
def test_a_memory_is_found_by_its_meaning(tmp_path: Path, query: str, found: int) -> None:
    async def best() -> str:
        with Database(tmp_path / "memory.db") as database:
            memory = LongTermMemory(database, "n", load_embedder("minilm"))
            for text in MEMORIES:
                await memory.add(text)
            return (await memory.retrieve(query, k=1))[0].text

    assert asyncio.run(best()) == MEMORIES[found]
