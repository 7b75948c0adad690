"""Tables of long-term memory.

`words` holds the words of the text for the full-text index, each marked with the namespace, so that a search reads only
its own namespace. Vectors are little-endian float32 blobs; `bucket` groups similar ones. Times are seconds since 1970.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import (
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

from midstream.memory.text_search import indexed_words
from midstream.store.schema import Schema

metadata = MetaData()

memories = Table(
    "memories",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("namespace", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String),  # its key
    Column("text", Text, nullable=False),
    Column("words", Text, nullable=False),
    Column("digest", String, nullable=False),
    Column("sources", Text, nullable=False),  # JSON list
    Column("importance", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("embedder", String),
    Column("vector", LargeBinary),
    Column("bucket", Integer),
    UniqueConstraint("namespace", "kind", "digest", name="memories_once"),
    Index("memories_by_name", "namespace", "name"),
    Index("memories_by_bucket", "namespace", "embedder", "bucket"),
    Index("memories_by_importance", "namespace", "importance"),
)

_SQLITE = (
    "CREATE VIRTUAL TABLE memories_text USING fts5(words, content='memories', content_rowid='id', "
    "tokenize=\"unicode61 remove_diacritics 0 tokenchars '_'\")",
    "CREATE VIRTUAL TABLE memories_vocabulary USING fts5vocab('memories_text', 'row')",
    "CREATE TRIGGER memories_added AFTER INSERT ON memories BEGIN "
    "INSERT INTO memories_text(rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER memories_removed AFTER DELETE ON memories BEGIN "
    "INSERT INTO memories_text(memories_text, rowid, words) VALUES ('delete', old.id, old.words); END",
    "CREATE TRIGGER memories_changed AFTER UPDATE OF words ON memories BEGIN "
    "INSERT INTO memories_text(memories_text, rowid, words) VALUES ('delete', old.id, old.words); "
    "INSERT INTO memories_text(rowid, words) VALUES (new.id, new.words); END",
)
_POSTGRESQL = ("CREATE INDEX memories_text ON memories USING gin (to_tsvector('simple', words))",)

for _dialect, _statements in (("sqlite", _SQLITE), ("postgresql", _POSTGRESQL)):
    for _statement in _statements:
        event.listen(memories, "after_create", sa.DDL(_statement).execute_if(dialect=_dialect))


def _index_by_namespace(connection: sa.Connection) -> None:
    """Version 2: each word is marked with the namespace."""
    rows = connection.execute(sa.select(memories.c.id, memories.c.namespace, memories.c.text)).all()
    for place, namespace, text in rows:
        changed = memories.update().where(memories.c.id == place)
        connection.execute(changed.values(words=indexed_words(text, namespace)))


MEMORY = Schema(name="memory", metadata=metadata, version=2, upgrades={2: _index_by_namespace})
