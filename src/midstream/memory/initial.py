"""Initial records of a memory, and temporary databases for them."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError
from midstream.memory.long_term import LongTermMemory, Record
from midstream.tools.texts import load_texts

_SETTING = "memory_retrieve.records"
_filled: set[tuple[str, str, str]] = set()


async def fill(memory: LongTermMemory, where: str, records: str) -> None:
    """Add the `records` that a config names to `memory` in the database `where`, once per process. Memories with the
    key of a record stay as they are. Raises `ConfigError` for unreadable records."""
    place = (where, memory.namespace, records)
    if place in _filled:
        return
    missing: list[Record] = []
    for row in await asyncio.to_thread(load_texts, records, _SETTING):
        record = _record(row)
        # The agent may have stored something newer under the key.
        if record.key is None or await memory.get(record.key) is None:
            missing.append(record)
    await memory.add_all(missing)
    _filled.add(place)


def temporary_database(purpose: str) -> str:
    """Return the path of a SQLite file for `purpose`: the same within this process, and removed at its end."""
    return str(Path(_folder().name) / f"memory-{hashlib.sha256(purpose.encode()).hexdigest()[:16]}.sqlite")


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="midstream-", ignore_cleanup_errors=True)


def _record(row: dict[str, Any]) -> Record:
    key, source, importance = row.get("key"), row.get("source", row["id"]), row.get("importance", 0.5)
    if not isinstance(key, str | None) or isinstance(importance, bool) or not isinstance(importance, int | float):
        raise ConfigError(
            f"{_SETTING}: the record '{row['text'][:60]}' is wrong", "`key` is text, `importance` a number from 0 to 1"
        )
    return Record(text=row["text"], key=key, source=str(source), importance=float(importance))
