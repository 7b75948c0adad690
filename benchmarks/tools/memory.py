"""Retrieval from long-term memory: milliseconds without the embedding, and this process's memory.

    python -m benchmarks.tools.memory --records 100000

The memories are made-up sentences of 12 words out of 20,000, drawn with Zipf's law, in one namespace of a SQLite file.
Another process stores them, so the memory that this one gains is that of the retrievals.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from benchmarks.tools.sandbox import processor

from midstream.memory.embedding import HashingEmbedder
from midstream.memory.long_term import LongTermMemory, _bucket
from midstream.memory.schema import MEMORY, memories
from midstream.memory.text_search import indexed_words
from midstream.store.database import Database

WORDS = 20_000
LENGTH = 12


class Prepared:
    """An embedder that has computed everything before it is asked."""

    name, size = "hashing-256", 256

    def __init__(self) -> None:
        self._vectors: dict[str, np.ndarray] = {}
        self._inner = HashingEmbedder()

    def prepare(self, texts: list[str]) -> None:
        self._vectors = dict(zip(texts, self._inner.embed(texts), strict=True))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vectors[text] for text in texts])


def sentences(count: int, seed: int) -> list[str]:
    drawn = np.minimum(np.random.default_rng(seed).zipf(1.2, (count, LENGTH)), WORDS)
    return [" ".join(f"w{word}" for word in row) for row in drawn]


def store(path: Path, records: int) -> None:
    """Store `records` memories in a new database."""
    with Database(path, "normal") as database:
        database.require(MEMORY)
        fill(database, sentences(records, seed=0))


def fill(database: Database, texts: list[str]) -> None:
    embedder = HashingEmbedder()
    for start in range(0, len(texts), 2000):
        part = texts[start : start + 2000]
        rows = [
            {
                "namespace": "bench", "kind": "fact", "text": text, "words": indexed_words(text, "bench"),
                "digest": f"{start + place}", "sources": "[]", "importance": 0.5, "created_at": 0.0, "used_at": 0.0,
                "uses": 0, "embedder": embedder.name, "vector": vector.tobytes(), "bucket": _bucket(vector),
            }
            for place, (text, vector) in enumerate(zip(part, embedder.embed(part), strict=True))
        ]  # fmt: skip
        database.change(lambda connection, rows=rows: connection.execute(sa.insert(memories), rows))


async def measure(memory: LongTermMemory, queries: list[str]) -> list[float]:
    took: list[float] = []
    for query in queries:
        started = time.perf_counter()
        found = await memory.retrieve(query, k=5)
        took.append((time.perf_counter() - started) * 1000)
        assert found
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        path, started = Path(folder) / "memory.db", time.perf_counter()
        storing = multiprocessing.get_context("spawn").Process(target=store, args=(path, arguments.records))
        storing.start()
        storing.join()
        assert storing.exitcode == 0
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / (1 << 20)
        print(f"{arguments.records} memories stored in {time.perf_counter() - started:.1f} s, {size:.0f} MB")
        retrieve(path, arguments.queries)


def retrieve(path: Path, count: int) -> None:
    """Measure `count` retrievals by words and vectors, and by words only."""
    with Database(path, "normal") as database:
        prepared = Prepared()
        memory = LongTermMemory(database, "bench", prepared)
        queries = [" ".join(text.split()[:6]) for text in sentences(count, seed=1)]
        prepared.prepare(queries)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for what, embedder in (("words and vectors", prepared), ("words", None)):
            memory.embedder = embedder
            cpu = time.process_time()
            took = sorted(asyncio.run(measure(memory, queries)))
            cpu_ms = (time.process_time() - cpu) / len(queries) * 1000
            times = f"{statistics.median(took):6.1f} ms median, {took[int(len(took) * 0.95)]:6.1f} p95"
            print(f"{what:<18} {times}, {cpu_ms:.1f} ms CPU")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"this process grew by {grown:.0f} MB during {2 * len(queries)} retrievals")


if __name__ == "__main__":
    main()
