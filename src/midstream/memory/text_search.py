"""Full-text search over memories: SQLite's FTS5 (BM25) or PostgreSQL's text search, with our own split into words.

Chinese and Japanese are written without spaces, so they are indexed as pairs of characters. Words are indexed with a
prefix for their namespace, so that the index finds and counts only words of one namespace.
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
"""Maximum words of a query that are searched; the rarest ones are chosen."""
MAX_MATCHES = 2000
"""Maximum memories that contain one of the searched words, unless the rarest word alone has more. Every match is
ranked, which takes a few microseconds."""
MAX_QUERY_CHARS = 2000


def words_of(text: str) -> list[str]:
    """Return the words of `text` in lower case; for Chinese and Japanese each character and each pair of neighbours."""
    words: list[str] = []
    for part in _PART.findall(text.lower()):
        if re.match(f"[{_UNSPACED}]", part):
            words += [*part, *(part[place : place + 2] for place in range(len(part) - 1))]
        else:
            words.append(part)
    return words


def indexed_words(text: str, namespace: str) -> str:
    """Return the indexed form of `text`: its words, each with the prefix of `namespace`."""
    mark = _mark(namespace)
    return " ".join(mark + word for word in words_of(text))


def search_words(connection: sa.Connection, query: str, namespace: str, limit: int) -> dict[int, float]:
    """Return the ids of memories in `namespace` that contain words of `query`, with their scores (higher is better)."""
    mark = _mark(namespace)
    words = [mark + word for word in dict.fromkeys(words_of(query[:MAX_QUERY_CHARS]))]
    if connection.dialect.name == "sqlite":
        return _sqlite(connection, words, limit)
    return _postgresql(connection, words, limit)


def _sqlite(connection: sa.Connection, words: list[str], limit: int) -> dict[int, float]:
    words = _rare(connection, words)
    if not words:
        return {}
    query = " OR ".join(_quoted(word) for word in words)
    rows = connection.exec_driver_sql(
        "SELECT rowid, rank FROM memories_text WHERE memories_text MATCH ? ORDER BY rank LIMIT ?", (query, limit)
    )
    return {int(row[0]): -float(row[1]) for row in rows}


def _rare(connection: sa.Connection, words: list[str]) -> list[str]:
    """Return the rarest of the `words` that occur, because ranking all memories with a common word would be slow."""
    counts: dict[str, int] = {}
    for start in range(0, min(len(words), 256), 64):
        part = words[start : start + 64]
        marks = ", ".join("?" * len(part))
        rows = connection.exec_driver_sql(
            f"SELECT term, doc FROM memories_vocabulary WHERE term IN ({marks})", tuple(part)
        )
        counts |= {row[0]: int(row[1]) for row in rows}
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
    query = " | ".join(words[: MAX_WORDS * 4])
    statement = sa.text(
        "SELECT id, words, ts_rank(to_tsvector('simple', words), to_tsquery('simple', :query)) AS score FROM memories "
        "WHERE to_tsvector('simple', words) @@ to_tsquery('simple', :query) ORDER BY score DESC, id LIMIT :limit"
    )
    rows = connection.execute(statement, {"query": query, "limit": limit * 4}).all()
    words_by_id = {int(row[0]): set(row[1].split()) & set(words) for row in rows}
    # PostgreSQL does not weight words by rarity, so each word is weighted by its frequency among the candidates.
    counts = Counter(word for own in words_by_id.values() for word in own)
    scores = {
        place: sum(math.log1p(len(words_by_id) / counts[word]) for word in own) for place, own in words_by_id.items()
    }
    best = sorted(scores, key=lambda place: (-scores[place], place))[:limit]
    return {place: scores[place] for place in best}


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _mark(namespace: str) -> str:
    return "n" + hashlib.sha256(namespace.encode()).hexdigest()[:10]
