"""Program of the child process of the tool `sql`: runs one query on a SQLite or DuckDB file.

Reads a request from standard input as JSON. Writes a line break when the database is open, then the result as JSON:
`columns` and `rows`, or an `error`. Imports nothing of this package, so that it starts quickly.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
from pathlib import Path
from typing import Any

MAX_TEXT_CHARS = 10_000
"""Maximum characters of a value in a result; longer values are truncated."""
MAX_VALUE_BYTES = 10_000_000
"""Maximum size of a value that SQLite computes, in bytes."""
MAX_INTEGER_BITS = 512
OVERHEAD_MB = 64
"""Address space for the process itself, in addition to the query's memory."""
TOO_MUCH = "the query needs too much memory"
NO_SELECT = "write one SELECT statement"
_REFUSED_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "fts3_tokenizer", "edit"})


class Refused(Exception):
    """The query was refused or failed. The message is for its author."""


def main() -> None:
    """Answer the request."""
    request = json.load(sys.stdin)
    out = sys.stdout
    cpu_s = int(request["cpu_s"])
    # If the parent has died, the kernel ends this process.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run = _sqlite if request["kind"] == "sqlite" else _duckdb
    try:
        text = json.dumps(run(request, out))
        if len(text) > request["max_chars"]:
            raise Refused(f"the result is larger than {request['max_chars'] >> 20} MB; select less")
    except Refused as error:
        text = json.dumps({"error": str(error)})
    except MemoryError:
        text = json.dumps({"error": TOO_MUCH})
    out.write("\n" + text)


def _ready(out: Any, memory_mb: int) -> None:
    """Report that the query starts, and limit the memory from now on."""
    out.write("\n")
    out.flush()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ((memory_mb + OVERHEAD_MB) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _sqlite(request: dict[str, Any], out: Any) -> dict[str, Any]:
    try:
        connection = sqlite3.connect(f"{Path(request['path']).as_uri()}?mode=ro", uri=True)
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_authorizer(_authorized)
        _ready(out, request["memory_mb"])
        cursor = connection.execute(request["query"])
        if cursor.description is None:
            raise Refused(NO_SELECT)
        return _result(cursor, request["max_rows"])
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise Refused(TOO_MUCH if "out of memory" in str(error) else f"the query failed: {error}") from None


def _authorized(action: int, first: str | None, second: str | None, *_: Any) -> int:
    allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE) or (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _REFUSED_FUNCTIONS
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _duckdb(request: dict[str, Any], out: Any) -> dict[str, Any]:
    import duckdb

    try:
        connection = duckdb.connect()
        connection.execute("SET autoinstall_known_extensions=false; SET autoload_known_extensions=false")
        connection.execute(f"SET memory_limit='{request['memory_mb']}MB'; SET threads=1; SET temp_directory=''")
        connection.execute(f"ATTACH {_quoted(request['path'])} AS attached (READ_ONLY)")
        connection.execute("USE attached; SET enable_external_access=false; SET lock_configuration=true")
    except duckdb.Error as error:
        raise Refused(f"the database cannot be opened: {_first_line(error)}") from None
    _ready(out, request["memory_mb"])
    try:
        statements = connection.extract_statements(request["query"])
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise Refused(NO_SELECT)
        return _result(connection.execute(statements[0]), request["max_rows"])
    except duckdb.OutOfMemoryException:
        raise Refused(TOO_MUCH) from None
    except duckdb.Error as error:
        raise Refused(TOO_MUCH if "bad_alloc" in str(error) else f"the query failed: {_first_line(error)}") from None


def _result(cursor: Any, max_rows: int) -> dict[str, Any]:
    """Return up to `max_rows` rows, and one more if the result is longer."""
    columns = [column[0] for column in cursor.description or ()]
    rows: list[list[Any]] = []
    while len(rows) <= max_rows and (row := cursor.fetchone()) is not None:
        rows.append([_plain(value) for value in row])
    return {"columns": columns, "rows": rows}


def _plain(value: Any) -> Any:
    """Return `value` as JSON data."""
    if isinstance(value, bytes):
        return f"[{len(value)} bytes]"
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        return f"[integer of {value.bit_length()} bits]"
    if isinstance(value, int | float | None):
        return value
    text = str(value)
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    main()
