"""Connects to SQLite by path or PostgreSQL by URL, and explains database errors."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from midstream.core.errors import RunError, nearest
from midstream.core.files import private
from midstream.store.prepared import run

BUSY_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10
DURABILITY = {"full": "FULL", "normal": "NORMAL"}
"""SQLite's names of the levels."""

INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""`insert` with the dialect's ON CONFLICT clause."""


def open_engine(url_or_path: str | Path, durability: str, read_only: bool = False) -> tuple[sa.Engine, str]:
    """An engine, and the name of its database for messages. Raises `RunError` when it cannot be used.

    A transaction on a connection with the execution option `writes` takes SQLite's lock immediately, so rows it reads
    cannot change before it writes. With `read_only` the database must exist, and nothing can be written.
    """
    if durability not in DURABILITY:
        raise RunError(f"unknown durability '{durability}'", nearest(durability, DURABILITY))
    url = _url(url_or_path)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, DURABILITY[durability], read_only), str(url.database)
    return _postgresql(url, durability, read_only), url.set(drivername="postgresql").render_as_string()


def explained(error: DBAPIError, where: str) -> Exception:
    """Return a `RunError` with advice for `error`; `error` itself when the user cannot fix it."""
    message = " ".join(str(error.orig).split())
    name = str(getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or "")
    by_name = [meaning for start, meaning in _BY_NAME.items() if name.startswith(start)]
    by_words = [meaning for words, meaning in _BY_WORDS.items() if not name and words in message]
    for what, hint in (by_name or by_words)[:1]:
        return RunError(f"{what}: '{where}' ({message})", hint)
    if isinstance(error, OperationalError):
        return RunError(f"the database '{where}' does not answer as it should: {message}", "check that it runs")
    return error


def is_retryable(error: BaseException) -> bool:
    """Whether retrying the transaction should succeed: it conflicted with another process (deadlock, or both inserted
    the same row)."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in ("40001", "40P01", "23505")


def is_database_failure(error: BaseException) -> bool:
    """Whether the database failed, as opposed to one of the rows (such as one too large for an index)."""
    return isinstance(error, OperationalError) and not str(getattr(error.orig, "sqlstate", None)).startswith("54")


_FULL = ("no room left to record into", "free disk space, then resume; what was acknowledged is on disk")
_PASSWORD = ("the server does not let this user in", "check user and password in the URL")
_NO_DATABASE = ("no such database", "make it with: createdb NAME")
_STOPPED = ("the server was stopped", "start it again; what was acknowledged is on disk")
_BY_NAME = {
    "SQLITE_FULL": _FULL,
    "SQLITE_NOTADB": ("this is not a database", "name another file, or move this one away"),
    "SQLITE_CORRUPT": ("this database is damaged", "restore it from a copy, or record into another file"),
    "SQLITE_READONLY": ("cannot write", "make the file and its folder writable, or record into another folder"),
    "SQLITE_CANTOPEN": ("cannot open", "the folder must be there and writable, and the path must name a file"),
    "SQLITE_PERM": ("cannot open", "make the file and its folder writable"),
    "SQLITE_BUSY": (f"locked by another process for {BUSY_TIMEOUT_S} s", "end the process that writes to it"),
    "SQLITE_IOERR": ("the disk failed", "check the disk and its free space, then resume"),
    # PostgreSQL: https://www.postgresql.org/docs/current/errcodes-appendix.html
    "53100": _FULL,
    "28": _PASSWORD,
    "3D": _NO_DATABASE,
    "57P": _STOPPED,
    "53300": ("the server takes no more connections", "end some, or raise max_connections"),
    "42501": ("the user may not do this", "GRANT it the right to create and write tables"),
    "25006": ("the server takes no writes", "name the primary, not a replica"),
}
"""Explanations by prefix of the error's name."""
_BY_WORDS = {
    "password": _PASSWORD,
    "no pg_hba.conf entry": _PASSWORD,
    'role "': _PASSWORD,
    'database "': _NO_DATABASE,
    "server closed the connection": _STOPPED,
    "connection": ("cannot reach the server", "check host and port in the URL, and that the server runs"),
}
"""Explanations by substring of the message, for failed connections to PostgreSQL: those errors have no name."""


def _url(url_or_path: str | Path) -> sa.URL:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return sa.URL.create("sqlite", database=str(url_or_path))
    try:
        url = sa.make_url(url_or_path)
    except ArgumentError:
        raise RunError("the URL of the store cannot be read", "for example postgresql://user@host/name") from None
    backend = {"postgres": "postgresql"}.get(url.get_backend_name(), url.get_backend_name())
    if backend not in INSERT:
        raise RunError(f"no store on '{backend}'", "use a path, or a postgresql:// URL")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.database in (None, "", ":memory:"):
        raise RunError("a store needs a file", "give the path of one")
    return url


def _sqlite(url: sa.URL, synchronous: str, read_only: bool) -> sa.Engine:
    path = Path(str(url.database))
    if read_only:
        if not path.is_file():
            raise RunError(f"no database at '{path}'", "check the path")
        url = url.set(database=f"file:{quote(str(path.absolute()))}", query={"mode": "ro", "uri": "true"})
    else:
        with suppress(OSError):  # SQLite reports better why a file cannot be created
            open(path, "xb", opener=private).close()
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    def set_up(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # disables the driver's implicit transactions; `begin` starts them
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
        record.info["file"] = _file(path)

    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        if writes and connection.info["file"] != _file(path):  # SQLite would keep writing to the unlinked file
            raise RunError(
                f"the file '{path}' was deleted or replaced while it was recorded into",
                "put it back, or start again; what was acknowledged before is in the file that was there",
            )
        run(connection, "BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", begin)
    return engine


def _file(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _postgresql(url: sa.URL, durability: str, read_only: bool) -> sa.Engine:
    timeout = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    try:
        engine = sa.create_engine(url, isolation_level="READ COMMITTED", pool_pre_ping=True, connect_args=timeout)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "psycopg":
            raise
        raise RunError("a store on PostgreSQL needs psycopg", "pip install 'midstream[postgres]'") from None

    def set_up(connection: Any, record: object) -> None:
        connection.autocommit = True
        connection.execute("SET default_transaction_read_only = on" if read_only else "SET synchronous_commit = off")
        connection.autocommit = False

    if read_only or durability == "normal":
        event.listen(engine, "connect", set_up)
    return engine
