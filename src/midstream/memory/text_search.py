"""Full-text search over memories: SQLite's FTS5 (BM25) or PostgreSQL's text search, with words cut here.

Chinese and Japanese are written without spaces, so runs of them are indexed as pairs of characters. Words are indexed
with their namespace in front, so that the index finds and counts those of one namespace only.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

import sqlalchemy as sa

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PART = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
MAX_WORDS = 8
"""Words of a query that are searched for, the rarest first."""
MAX_MATCHES = 2000
"""Memories that hold one of the words searched for, at most, unless the rarest word alone has more: every match is
ranked, which takes a few microseconds."""
MAX_QUERY_CHARS = 2000


def words_of(text: str) -> list[str]:
    """Words of `text` in lower case; of Chinese and Japanese each two neighbouring characters, and each single one."""
    found: list[str] = []
    for part in _PART.findall(text.lower()):
        if re.match(f"[{_UNSPACED}]", part):
            found += [*part, *(part[place : place + 2] for place in range(len(part) - 1))]
        else:
            found.append(part)
    return found


def indexed_words(text: str, namespace: str) -> str:
    """What the index holds of `text`: its words, each with the mark of `namespace` in front."""
    mark = _mark(namespace)
    return " ".join(mark + word for word in words_of(text))


def search_words(connection: sa.Connection, query: str, namespace: str, limit: int) -> dict[int, float]:
    """Ids of the memories of `namespace` that hold words of `query`, with their scores (higher is better)."""
    mark = _mark(namespace)
    words = [mark + word for word in dict.fromkeys(words_of(query[:MAX_QUERY_CHARS]))]
    if connection.dialect.name == "sqlite":
        return _sqlite(connection, words, limit)
    return _postgresql(connection, words, limit)


def _sqlite(connection: sa.Connection, words: list[str], limit: int) -> dict[int, float]:
    words = _rare(connection, words)
    if not words:
        return {}
    wanted = " OR ".join(_quoted(word) for word in words)
    found = connection.exec_driver_sql(
        "SELECT rowid, rank FROM memories_text WHERE memories_text MATCH ? ORDER BY rank LIMIT ?", (wanted, limit)
    )
    return {int(row[0]): -float(row[1]) for row in found}


def _rare(connection: sa.Connection, words: list[str]) -> list[str]:
    """The rarest of `words` that occur at all: ranking every memory that holds a common word would be slow."""
    counts: dict[str, int] = {}
    for start in range(0, min(len(words), 256), 64):
        part = words[start : start + 64]
        marks = ", ".join("?" * len(part))
        found = connection.exec_driver_sql(
            f"SELECT term, doc FROM memories_vocabulary WHERE term IN ({marks})", tuple(part)
        )
        counts |= {row[0]: int(row[1]) for row in found}
    chosen: list[str] = []
    matches = 0
    for word in sorted(counts, key=lambda word: (counts[word], words.index(word)))[:MAX_WORDS]:
        matches += counts[word]
        if chosen and matches > MAX_MATCHES:
            break
        chosen.append(word)
    return chosen


def _postgresql(connection: sa.Connection, words: list[str], limit: int) -> dict[int, float]:
    if not words:
        return {}
    wanted = " | ".join(words[: MAX_WORDS * 4])
    statement = sa.text(
        "SELECT id, words, ts_rank(to_tsvector('simple', words), to_tsquery('simple', :wanted)) AS score FROM memories "
        "WHERE to_tsvector('simple', words) @@ to_tsquery('simple', :wanted) ORDER BY score DESC, id LIMIT :limit"
    )
    found = connection.execute(statement, {"wanted": wanted, "limit": limit * 4}).all()
    held = {int(row[0]): set(row[1].split()) & set(words) for row in found}
    # PostgreSQL ranks a common word like a rare one; here the share of these candidates that hold it counts.
    counts = Counter(word for own in held.values() for word in own)
    scores = {place: sum(math.log1p(len(held) / counts[word]) for word in own) for place, own in held.items()}
    best = sorted(scores, key=lambda place: (-scores[place], place))[:limit]
    return {place: scores[place] for place in best}


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _mark(namespace: str) -> str:
    return "n" + hashlib.sha256(namespace.encode()).hexdigest()[:10]
