"""`sql`: read-only queries on a SQLite or DuckDB file.

One SELECT per call. The file is opened read-only; SQLite's authorizer allows reading its tables and nothing else,
DuckDB runs without access to files, the network, extensions and settings. Each query runs in its own process with a
time and a memory limit, because neither database can be interrupted everywhere from inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
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
MAX_RESULT_CHARS = 4 << 20
"""Maximum characters of a result as JSON."""
START_S = 30.0
"""Seconds for starting the process and opening the database, before the query's own time limit."""
_WORKER = Path(__file__).with_name("sql_worker.py")
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
"""Environment variables that the process gets. Others may hold secrets."""
_SQLITE_HEADER = b"SQLite format 3\0"


class SqlSettings(Config):
    """`flow.tool_settings.sql`."""

    path: str
    """The database file."""
    kind: Literal["auto", "sqlite", "duckdb"] = "auto"
    """Format of the file; `auto` detects it from the first bytes."""
    max_rows: int = Field(default=50, ge=1)
    """Maximum rows of a result. If there are more, the agent is told so."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Time limit of a query, in seconds."""
    memory_mb: int = Field(default=256, ge=16)
    """Memory limit of a query. Enforced on Linux; elsewhere only in DuckDB."""


def sql_toolset(settings: SqlSettings) -> FunctionToolset:
    """Return the tool. Raises `ConfigError` if the file does not exist."""
    path = Path(settings.path)
    if not path.is_file():
        raise ConfigError(f"sql: there is no database '{path}'", "set its path")
    with path.open("rb") as file:
        is_sqlite = file.read(16) == _SQLITE_HEADER
    kind = settings.kind if settings.kind != "auto" else "sqlite" if is_sqlite else "duckdb"
    if kind == "duckdb" and importlib.util.find_spec("duckdb") is None:
        raise ConfigError(f"sql: '{path}' needs the package duckdb", "pip install 'midstream[tools]'")

    @tool(
        timeout_s=START_S + settings.timeout_s + 5,
        idempotent=True,
        returns="rows",
        limits=["reads only", f"{settings.max_rows} rows at most"],
        best_practices=[
            "list the tables first: SELECT name, sql FROM sqlite_master"
            if kind == "sqlite"
            else "list the columns first: SELECT table_name, column_name, data_type FROM information_schema.columns"
        ],
    )
    async def sql(query: str) -> ToolResult:
        """Query the database with one SELECT statement."""
        if len(query) > MAX_QUERY_CHARS:
            raise ToolError(f"the query is longer than {MAX_QUERY_CHARS} characters")
        columns, rows = await _run(path, kind, query, settings)
        shown = rows[: settings.max_rows]
        lines = [" | ".join(columns), *(" | ".join(map(_cell, row)) for row in shown)]
        if len(rows) > settings.max_rows:
            lines.append(f"[more than {settings.max_rows} rows]")
        data = {"columns": columns, "rows": shown}
        return ToolResult((ToolContent(kind="data", text="\n".join(lines), data=data, source=path.name),))

    return FunctionToolset([sql])


async def _run(path: Path, kind: str, query: str, settings: SqlSettings) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the query. Raises `ToolError` for every failure, and leaves no process behind."""
    request = {
        "path": str(path.absolute()),
        "kind": kind,
        "query": query,
        "max_rows": settings.max_rows,
        "memory_mb": settings.memory_mb,
        "max_chars": MAX_RESULT_CHARS,
        "cpu_s": int(START_S + settings.timeout_s) + 5,
    }
    # Arenas of the allocator reserve address space, which counts towards the limit.
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {"MALLOC_ARENA_MAX": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-B", str(_WORKER)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        return await _exchange(process, json.dumps(request).encode(), settings.timeout_s)
    finally:
        await _end(process)


async def _exchange(
    process: asyncio.subprocess.Process, request: bytes, timeout_s: float
) -> tuple[list[str], list[list[Any]]]:
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            process.stdin.write(request)
            await process.stdin.drain()
            process.stdin.close()
            await process.stdout.read(1)
    except TimeoutError:
        raise ToolError("the database could not be opened in time") from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # the process has ended, so its answer is complete
    answer = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await process.stdout.read(1 << 16):
                answer += chunk
                if len(answer) > MAX_RESULT_CHARS + (1 << 16):
                    raise ToolError(f"the result is larger than {MAX_RESULT_CHARS >> 20} MB; select less")
            await process.wait()
    except TimeoutError:
        raise ToolError(f"the query took longer than {timeout_s:g} s") from None
    try:
        found = json.loads(answer)
    except ValueError:
        raise ToolError("the query ended the database: it needs too much memory, or is nested too deeply") from None
    if "error" in found:
        raise ToolError(found["error"])
    return found["columns"], found["rows"]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    # The process counts as ended only when its output has been read.
    while process.stdout is not None and await process.stdout.read(1 << 16):
        pass
    await process.wait()


def _cell(value: Any) -> str:
    text = "NULL" if value is None else str(value).replace("\n", " ")
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 3] + "..."


sql = ToolKind(SqlSettings, sql_toolset)
