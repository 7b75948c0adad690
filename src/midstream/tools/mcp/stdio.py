"""Transport to an MCP server that is a program: bounded lines, a clean environment, and no process left behind.

The SDK's own stdio client reads lines of any length and passes the server's stderr on to ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from subprocess import DEVNULL, PIPE
from typing import Any

import anyio
import anyio.abc
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

END_S = 2.0
"""Time limit for a server to end after its input was closed, in seconds."""


@asynccontextmanager
async def stdio_transport(
    command: tuple[str, ...], env: Mapping[str, str], cwd: str | None, max_line: int
) -> AsyncGenerator[tuple[Any, Any], None]:
    """Start `command` and yield the streams of its messages. A line longer than `max_line` bytes ends the connection.

    Raises `OSError` if it cannot be started. Kills its process group at the end."""
    process = await anyio.open_process(
        list(command),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=get_default_environment() | dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    to_session, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_read, process, to_session, max_line)
            group.start_soon(_write, process, from_session, to_session)
            try:
                yield read_stream, write_stream
            finally:
                with anyio.CancelScope(shield=True):
                    group.cancel_scope.cancel()
                    await _end(process)
    finally:
        for stream in (to_session, read_stream, write_stream, from_session):
            stream.close()


async def _read(process: anyio.abc.Process, to_session: Any, max_line: int) -> None:
    assert process.stdout is not None
    buffer = bytearray()
    with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
        async with to_session:
            async for chunk in process.stdout:
                start = len(buffer)
                buffer += chunk
                while (end := buffer.find(b"\n", start)) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    start = 0
                    if line.strip():
                        await to_session.send(_parsed(line))
                if len(buffer) > max_line:
                    return


def _parsed(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _write(process: anyio.abc.Process, from_session: Any, to_session: Any) -> None:
    assert process.stdin is not None
    try:
        async with from_session:
            async for sent in from_session:
                text = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
                await process.stdin.send(text.encode() + b"\n")
    except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
        await to_session.aclose()  # so that the session sees the end instead of waiting for an answer


async def _end(process: anyio.abc.Process) -> None:
    """Close the server's input, wait a moment, then kill its process group."""
    if process.stdin is not None:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            await process.stdin.aclose()
    with anyio.move_on_after(END_S):
        await process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    if process.stdout is not None:
        with anyio.move_on_after(END_S), contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async for _ in process.stdout:  # reads the rest of the pipe, so that it closes
                pass
