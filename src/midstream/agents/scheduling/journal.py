"""Databases for the runs of simulated plans: one for each path, or a temporary one for the whole process."""

from __future__ import annotations

import atexit
import tempfile
import threading
from functools import cache
from pathlib import Path

from midstream.store import Database

_lock = threading.Lock()


def open_journal(path: str | None) -> Database:
    """Return the database at `path`; without one, a temporary database. Opened once, and closed when the process
    exits. Raises `RunError` when it cannot be used."""
    with _lock:
        return _temporary() if path is None else _at(path)


@cache
def _at(path: str) -> Database:
    database = Database(path, "normal")
    atexit.register(database.close)
    return database


@cache
def _temporary() -> Database:
    folder = tempfile.TemporaryDirectory(prefix="midstream-plans-", ignore_cleanup_errors=True)
    database = Database(Path(folder.name) / "plans.sqlite", "normal")

    def close() -> None:
        database.close()
        folder.cleanup()

    atexit.register(close)
    return database
