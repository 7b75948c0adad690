"""Long-term memory: texts in the store that outlive a trajectory, found by words, by vector or by key.

A retrieval ranks its candidates by relevance, recency and importance, each from 0 to 1 (Park et al. 2023, "Generative
Agents", section 4.1):

    score = relevance + recency_weight * 0.5 ** (age / half_life) + importance_weight * importance

Relevance is the mean of the BM25 score, divided by the best one, and the cosine similarity; without an embedder it is
the former alone. Candidates are the best matches by words and the nearest vectors: among all vectors of a small
namespace, among those in similar buckets (random hyperplanes, Charikar 2002) of a large one. Only candidates are read
into memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from midstream.core import clock
from midstream.memory.embedding import Embedder
from midstream.memory.schema import MEMORY, memories
from midstream.memory.text_search import indexed_words, search_words
from midstream.store.database import Database
from midstream.store.transaction import Transaction

CANDIDATES = 48
"""Maximum candidates by words."""
EXACT_UP_TO = 1000
"""Size of a namespace up to which every vector is compared."""
BUCKET_BITS = 12
SAME = 0.95
"""Cosine similarity from which two memories of a kind count as the same."""
DAY_S = 86_400.0
_UNSHOWN = ("words", "digest", "embedder", "bucket")
_SHOWN = sa.select(*(column for column in memories.c if column.name not in _UNSHOWN))
"""Columns that a retrieval reads of its candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record for `LongTermMemory.add_all`; the fields are the arguments of `add`."""

    text: str
    kind: str = "fact"
    key: str | None = None
    source: str = ""
    importance: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One memory. `sources` are its origins; `score` is its score in a retrieval (otherwise 0)."""

    id: int
    text: str
    kind: str = "fact"
    key: str | None = None
    sources: tuple[str, ...] = ()
    importance: float = 0.5
    created_at: float = 0.0
    uses: int = 0
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Weights of a retrieval."""

    recency_weight: float = 0.3
    importance_weight: float = 0.3
    half_life_days: float = 7.0
    """Days without use that halve the recency."""


@dataclass(slots=True)
class LongTermMemory:
    """The memories of one `namespace` in `database`. Other namespaces are never read or changed."""

    database: Database
    namespace: str
    embedder: Embedder | None = None
    ranking: Ranking = field(default_factory=Ranking)

    def __post_init__(self) -> None:
        self.database.require(MEMORY)

    async def add(
        self, text: str, *, kind: str = "fact", key: str | None = None, source: str = "", importance: float = 0.5
    ) -> int:
        """Store `text`; returns the id of its memory.

        A memory with a `key` replaces the previous one with this key and is never merged. A memory without a key is
        merged into another one of its kind without a key that has the same text, or nearly the same vector and the same
        names, numbers and symbols: the merged memory has the new text, the higher importance, and both sources."""
        record = Record(text=text, kind=kind, key=key, source=source, importance=importance)
        return (await self.add_all([record]))[0]

    async def add_all(self, records: Sequence[Record]) -> list[int]:
        """Add `records` in order, in one transaction; returns the ids of their memories."""
        texts = [record.text for record in records]
        vectors: list[np.ndarray | None] = [None] * len(texts)
        if self.embedder is not None:
            vectors = [np.asarray(one, dtype="<f4") for one in await asyncio.to_thread(self.embedder.embed, texts)]
        entries = [(self._entry(record, vector), vector) for record, vector in zip(records, vectors, strict=True)]
        return await self.database.submit(
            lambda transaction: [self._write(transaction, entry, vector) for entry, vector in entries]
        )

    def _entry(self, record: Record, vector: np.ndarray | None) -> dict[str, Any]:
        now = clock.time()
        return {
            "namespace": self.namespace,
            "kind": record.kind,
            "name": record.key,
            "text": record.text,
            "words": indexed_words(record.text, self.namespace),
            "digest": _digest(record.text, record.key),
            "sources": json.dumps([record.source] if record.source else []),
            "importance": min(max(record.importance, 0.0), 1.0),
            "created_at": now,
            "used_at": now,
            "uses": 0,
            "embedder": None if self.embedder is None else self.embedder.name,
            "vector": None if vector is None else vector.tobytes(),
            "bucket": None if vector is None else _bucket(vector),
        }

    async def retrieve(self, query: str, k: int = 3, *, kind: str | None = None, touch: bool = False) -> list[Memory]:
        """Return the `k` memories with the highest scores for `query`, best first. `touch` marks them as used now."""
        vector = await self._embedded(query)
        best = await asyncio.to_thread(self.database.read, lambda c: self._ranked(c, query, vector, k, kind))
        if touch and best:
            ids = [memory.id for memory in best]
            now = clock.time()
            self.database.post(
                lambda transaction: transaction.connection.execute(
                    memories.update().where(memories.c.id.in_(ids)).values(used_at=now, uses=memories.c.uses + 1)
                )
            )
        return best

    async def get(self, key: str) -> Memory | None:
        """Return the memory with this `key`, or None."""
        where = (memories.c.namespace == self.namespace) & (memories.c.name == key)
        row = await asyncio.to_thread(
            self.database.read, lambda c: c.execute(sa.select(memories).where(where)).mappings().first()
        )
        return None if row is None else _memory(row, 0.0)

    async def keys(self, prefix: str = "") -> list[str]:
        """Return all keys that begin with `prefix`, sorted."""
        name = memories.c.name
        where = (memories.c.namespace == self.namespace) & name.startswith(prefix, autoescape=True)
        found = await asyncio.to_thread(
            self.database.read, lambda c: c.scalars(sa.select(name).where(where & name.is_not(None))).all()
        )
        return sorted(found)

    async def forget(self, *ids: int) -> None:
        """Delete memories of this namespace."""
        where = (memories.c.namespace == self.namespace) & memories.c.id.in_(ids)
        await self.database.submit(lambda transaction: transaction.connection.execute(memories.delete().where(where)))

    async def prune(self, keep: int) -> int:
        """Keep the `keep` memories with the highest importance and recency; returns the number deleted."""
        return await self.database.submit(lambda transaction: self._prune(transaction.connection, keep))

    async def _embedded(self, text: str) -> np.ndarray | None:
        if self.embedder is None:
            return None
        vectors = await asyncio.to_thread(self.embedder.embed, [text])
        return np.asarray(vectors[0], dtype="<f4")

    def _write(self, transaction: Transaction, entry: dict[str, Any], vector: np.ndarray | None) -> int:
        connection = transaction.connection
        own = memories.c.namespace == self.namespace
        if entry["name"] is not None:
            connection.execute(memories.delete().where(own & (memories.c.name == entry["name"])))
        same = own & (memories.c.kind == entry["kind"])
        same_text = connection.execute(
            sa.select(memories).where(same & (memories.c.digest == entry["digest"]))
        ).mappings()
        row = same_text.first()
        if row is None and vector is not None and entry["name"] is None:
            row = self._nearly_same(connection, vector, entry)
        if row is None:
            inserted = connection.execute(memories.insert().returning(memories.c.id), [entry])
            return int(inserted.scalar_one())
        sources = [*json.loads(row["sources"]), *json.loads(entry["sources"])]
        changes = {
            **{name: entry[name] for name in ("text", "words", "digest", "used_at", "embedder", "vector", "bucket")},
            "sources": json.dumps(list(dict.fromkeys(sources))),
            "importance": max(row["importance"], entry["importance"]),
        }
        connection.execute(memories.update().where(memories.c.id == row["id"]).values(changes))
        return int(row["id"])

    def _nearly_same(self, connection: sa.Connection, vector: np.ndarray, entry: dict[str, Any]) -> Any:
        near = self._near(
            connection, vector, CANDIDATES, (memories.c.kind == entry["kind"]) & memories.c.name.is_(None)
        )
        rows = connection.execute(sa.select(memories).where(memories.c.id.in_(near))).mappings().all()
        particulars = _particulars(entry["text"])
        alike = (row for row in rows if _agree(particulars, _particulars(row["text"])))
        best = max(alike, key=lambda row: _cosine(row, vector), default=None)
        return best if best is not None and _cosine(best, vector) >= SAME else None

    def _ranked(
        self, connection: sa.Connection, query: str, vector: np.ndarray | None, k: int, kind: str | None
    ) -> list[Memory]:
        of_kind = sa.true() if kind is None else memories.c.kind == kind
        by_words = search_words(connection, query, self.namespace, CANDIDATES)
        near = [] if vector is None else self._near(connection, vector, CANDIDATES, of_kind)
        candidates = list(by_words.keys() | set(near))
        selected = connection.execute(_SHOWN.where(memories.c.id.in_(candidates) & of_kind)) if candidates else ()
        # Namespaces are compared here, because SQLite would use their index for the search. Two namespaces may have the
        # same mark.
        rows = {row.id: row._mapping for row in selected if row.namespace == self.namespace}
        best = max((by_words.get(place, 0.0) for place in rows), default=0.0)
        scored: list[tuple[float, Any]] = []
        for place, row in rows.items():
            parts = [by_words.get(place, 0.0) / best if best > 0 else 0.0]
            if vector is not None:
                parts.append(max(_cosine(row, vector), 0.0))
            relevance = sum(parts) / len(parts)
            if relevance > 0:
                scored.append((relevance + self._prior(row), row))
        scored.sort(key=lambda item: (-item[0], item[1]["id"]))
        return [_memory(row, score) for score, row in scored[:k]]

    def _near(self, connection: sa.Connection, vector: np.ndarray, limit: int, where: Any) -> list[int]:
        """Return the ids of the `limit` memories with the nearest vectors."""
        assert self.embedder is not None
        own = (memories.c.namespace == self.namespace) & (memories.c.embedder == self.embedder.name)
        beyond = sa.select(memories.c.id).where(own).offset(EXACT_UP_TO).limit(1)
        if connection.execute(beyond).first() is not None:
            own &= memories.c.bucket.in_(_near_buckets(_bucket(vector)))
        rows = connection.execute(sa.select(memories.c.id, memories.c.vector).where(own & where)).all()
        if not rows:
            return []
        vectors = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4").reshape(len(rows), -1)
        nearest = np.argsort(-(vectors @ vector), kind="stable")[:limit]
        return [rows[int(place)][0] for place in nearest]

    def _prior(self, row: Any) -> float:
        """Return the part of a score that does not depend on the query."""
        age_days = max(clock.time() - row["used_at"], 0.0) / DAY_S
        recency = 0.5 ** (age_days / self.ranking.half_life_days)
        return self.ranking.recency_weight * recency + self.ranking.importance_weight * row["importance"]

    def _prune(self, connection: sa.Connection, keep: int) -> int:
        own = memories.c.namespace == self.namespace
        columns = (memories.c.id, memories.c.used_at, memories.c.importance)
        rows = connection.execute(sa.select(*columns).where(own)).mappings().all()
        extra = sorted(rows, key=lambda row: (-self._prior(row), -row["id"]))[keep:]
        for start in range(0, len(extra), 500):
            ids = [row["id"] for row in extra[start : start + 500]]
            connection.execute(memories.delete().where(memories.c.id.in_(ids)))
        return len(extra)


def _memory(row: Any, score: float) -> Memory:
    return Memory(
        id=row["id"],
        text=row["text"],
        kind=row["kind"],
        key=row["name"],
        sources=tuple(json.loads(row["sources"])),
        importance=row["importance"],
        created_at=row["created_at"],
        uses=row["uses"],
        score=score,
    )


def _digest(text: str, key: str | None) -> str:
    """Return a digest of the text, without regard to white space, and the key."""
    return hashlib.sha256(json.dumps([key, " ".join(text.split())]).encode()).hexdigest()


def _particulars(text: str) -> tuple[set[str], set[str]]:
    """Return the words of `text`, and those that distinguish similar texts: names (capitals within a sentence),
    numbers, and words with symbols. All in lower case."""
    words, particular = set[str](), set[str]()
    for place, raw in enumerate(text.split()):
        word = raw.strip("\"'()[]").rstrip(".,;:!?") or raw
        words.add(word.lower())
        named = word[1:] if place == 0 else word
        if not word.isalpha() or named != named.lower():
            particular.add(word.lower())
    return words, particular


def _agree(first: tuple[set[str], set[str]], second: tuple[set[str], set[str]]) -> bool:
    """Whether each of two texts contains the names, numbers and symbols of the other."""
    return first[1] <= second[0] and second[1] <= first[0]


def _cosine(row: Any, vector: np.ndarray) -> float:
    if row["vector"] is None or len(row["vector"]) != vector.nbytes:
        return 0.0
    return float(np.frombuffer(row["vector"], dtype="<f4") @ vector)


def _bucket(vector: np.ndarray) -> int:
    """Return on which side of each of `BUCKET_BITS` fixed random hyperplanes `vector` lies, as bits of a number."""
    planes = np.random.default_rng(0).standard_normal((BUCKET_BITS, len(vector)))
    return int(sum(1 << bit for bit, side in enumerate(planes @ vector > 0) if side))


def _near_buckets(bucket: int) -> list[int]:
    """Return `bucket` and all buckets that differ from it in one bit."""
    return [bucket, *(bucket ^ (1 << bit) for bit in range(BUCKET_BITS))]
