"""`sql`: read-only queries on a SQLite or DuckDB file.

One SELECT a call. The file is opened read-only; SQLite's authorizer allows reading its tables and nothing else, DuckDB
runs without access to files, the network, extensions and settings. Rows, time and memory are bounded.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from midstream.core.config import Config
from midstream.core.errors import ConfigError
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools.declare import tool
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset

MAX_CELL_CHARS = 200
MAX_QUERY_CHARS = 20_000
MAX_VALUE_BYTES = 10_000_000
"""Largest value that SQLite computes. Its limits on memory are the whole process's, so they are left alone."""
_SQLITE_HEADER = b"SQLite format 3\0"
_REFUSED_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "fts3_tokenizer", "edit"})
Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]


class SqlSettings(Config):
    """`flow.tool_settings.sql`."""

    path: str
    """The database file."""
    kind: Literal["auto", "sqlite", "duckdb"] = "auto"
    """What the file is; `auto` looks at its first bytes."""
    max_rows: int = Field(default=50, ge=1)
    """Rows of a result; the rest is left out, and the agent reads that."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Seconds a query may run."""
    memory_mb: int = Field(default=256, ge=16)
    """Memory a query may use in DuckDB."""


def sql_toolset(settings: SqlSettings) -> FunctionToolset:
    """The tool with `settings`. Raises `ConfigError` without the file."""
    path = Path(settings.path)
    if not path.is_file():
        raise ConfigError(f"sql: there is no database '{path}'", "set its path")
    with path.open("rb") as file:
        is_sqlite = file.read(16) == _SQLITE_HEADER
    run = _sqlite if settings.kind == "sqlite" or (settings.kind == "auto" and is_sqlite) else _duckdb

    @tool(
        timeout_s=settings.timeout_s + 5,
        idempotent=True,
        returns="rows",
        limits=["reads only", f"{settings.max_rows} rows at most"],
        best_practices=[
            "list the tables first: SELECT name, sql FROM sqlite_master"
            if run is _sqlite
            else "list the columns first: SELECT table_name, column_name, data_type FROM information_schema.columns"
        ],
    )
    def sql(query: str) -> ToolResult:
        """Query the database with one SELECT statement."""
        if len(query) > MAX_QUERY_CHARS:
            raise ToolError(f"the query is longer than {MAX_QUERY_CHARS} characters")
        columns, rows = run(path, query, settings)
        shown = [list(row) for row in rows[: settings.max_rows]]
        lines = [" | ".join(columns), *(" | ".join(map(_cell, row)) for row in shown)]
        if len(rows) > settings.max_rows:
            lines.append(f"[more than {settings.max_rows} rows]")
        data = {"columns": list(columns), "rows": [[_plain(value) for value in row] for row in shown]}
        return ToolResult((ToolContent(kind="data", text="\n".join(lines), data=data, source=path.name),))

    return FunctionToolset([sql])


def _sqlite(path: Path, query: str, settings: SqlSettings) -> Rows:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_authorizer(_authorized)
        ends = time.monotonic() + settings.timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > ends, 10_000)
        cursor = connection.execute(query)
        if cursor.description is None:
            raise ToolError("write one SELECT statement")
        return [column[0] for column in cursor.description], cursor.fetchmany(settings.max_rows + 1)
    except sqlite3.Error as error:
        if "interrupted" in str(error):
            raise ToolError(f"the query took longer than {settings.timeout_s:g} s") from None
        raise ToolError(f"the query failed: {error}") from None
    except MemoryError:
        raise ToolError("the query needs too much memory") from None
    finally:
        connection.close()


def _authorized(action: int, first: str | None, second: str | None, *_: Any) -> int:
    allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE) or (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _REFUSED_FUNCTIONS
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _duckdb(path: Path, query: str, settings: SqlSettings) -> Rows:
    import duckdb

    try:
        # A cursor of its own database: settings of one connection hold for all of a process to the same file.
        connection = duckdb.connect()
        connection.execute("SET autoinstall_known_extensions=false; SET autoload_known_extensions=false")
        connection.execute(f"SET memory_limit='{settings.memory_mb}MB'; SET threads=1; SET temp_directory=''")
        connection.execute(f"ATTACH {_quoted(str(path.absolute()))} AS attached (READ_ONLY)")
        connection.execute("USE attached; SET enable_external_access=false; SET lock_configuration=true")
    except duckdb.Error as error:
        raise ToolError(f"the database cannot be opened: {str(error).splitlines()[0]}") from None
    timer = threading.Timer(settings.timeout_s, connection.interrupt)
    timer.start()
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ToolError("write one SELECT statement")
        cursor = connection.execute(statements[0])
        columns = [column[0] for column in cursor.description or ()]
        return columns, cursor.fetchmany(settings.max_rows + 1)
    except duckdb.InterruptException:
        raise ToolError(f"the query took longer than {settings.timeout_s:g} s") from None
    except duckdb.Error as error:
        raise ToolError(f"the query failed: {str(error).splitlines()[0]}") from None
    finally:
        timer.cancel()
        connection.close()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _cell(value: Any) -> str:
    text = "NULL" if value is None else str(_plain(value)).replace("\n", " ")
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 3] + "..."


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"[{len(value)} bytes]"
    return value if isinstance(value, str | int | float | None) else str(value)


sql = ToolKind(SqlSettings, sql_toolset)
