"""One connection to an MCP server, held open by a task of its own.

The SDK's client must be entered and left in the same task, while a toolset may be opened, used and closed in any task.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from mcp import Client, MCPError
from mcp_types import INVALID_PARAMS, CallToolResult
from mcp_types import Tool as McpTool

from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.core.secrets import NOT_KEPT
from midstream.tools.errors import ToolError
from midstream.tools.mcp.config import McpServerConfig
from midstream.tools.mcp.elicitation import accept_defaults
from midstream.tools.mcp.http import http_transport
from midstream.tools.mcp.stdio import stdio_transport

MAX_PAGES, MAX_TOOLS = 100, 1000
CLOSE_S = 5.0
"""Time limit for closing a connection."""


class McpConnection:
    """`start` connects and lists the tools; `call` calls one of them. Errors name the server."""

    def __init__(self, name: str, config: McpServerConfig) -> None:
        self.name, self.config = name, config
        self.tools: list[McpTool] = []
        self._client: Client | None = None
        self._running: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._starting = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """Whether calls are possible."""
        return self._client is not None and self._running is not None and not self._running.done()

    async def start(self) -> None:
        """Connect and list the tools. Raises `ToolUnavailable` if the server does not answer or breaks the protocol."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._running = asyncio.create_task(self._hold(ready), name=f"mcp-{self.name}")
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await asyncio.shield(ready)
        except TimeoutError:
            await self.close()
            raise self._unavailable(f"did not answer within {self.config.start_timeout_s:g} s") from None
        except BaseException:
            await self.close()
            raise

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Call `tool`. Raises `ToolError` for a mistake of the caller, `ToolUnavailable` for any other failure."""
        if not self.alive and self.config.shared:
            async with self._starting:
                if not self.alive:
                    await self.close()
                    await self.start()
        if not self.alive or self._client is None:
            raise self._unavailable("has ended")
        calling = asyncio.ensure_future(self._client.call_tool(tool, dict(arguments)))
        assert self._running is not None
        try:
            await asyncio.wait({calling, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise self._unavailable("ended during the call")
            return calling.result()
        except MCPError as error:
            if error.code == INVALID_PARAMS:
                raise ToolError(f"MCP server '{self.name}': {error.message}") from None
            raise self._unavailable(f"failed the call: {error.message}") from None
        except (ToolUnavailable, asyncio.CancelledError):
            raise
        except Exception as error:  # raised by the SDK for answers that break the protocol or the declared schema
            raise self._unavailable(f"answered wrongly: {_first_line(error)}") from None
        finally:
            calling.cancel()

    async def close(self) -> None:
        """Disconnect, and end the program of the server."""
        self._end.set()
        if self._running is not None:
            if self._client is not None:
                await asyncio.wait({self._running}, timeout=CLOSE_S)
            self._running.cancel()
            await asyncio.wait({self._running}, timeout=CLOSE_S)
        self._client = None

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        """Connect, list the tools, and stay connected until `close`."""
        try:
            async with AsyncExitStack() as stack:
                asked = accept_defaults if self.config.elicitation == "defaults" else None
                transport = _transport(self.name, self.config)
                client = await stack.enter_async_context(Client(transport, cache=None, elicitation_callback=asked))
                self.tools = await _listed(client)
                self._client = client
                if not ready.done():
                    ready.set_result(None)
                await self._end.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # an exception group of the errors of the transport's tasks
            if not ready.done():
                known = isinstance(error, ConfigError)
                ready.set_exception(error if known else self._unavailable(_first_line(error)))
        finally:
            self._client = None
            if not ready.done():
                ready.cancel()

    def _unavailable(self, reason: str) -> ToolUnavailable:
        return ToolUnavailable(f"MCP server '{self.name}' {reason}")


async def _listed(client: Client) -> list[McpTool]:
    """Return all tools, requested page by page. The number of pages is limited."""
    tools: list[McpTool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        if page.next_cursor is None or page.next_cursor == cursor or len(tools) >= MAX_TOOLS:
            break
        cursor = page.next_cursor
    return tools[:MAX_TOOLS]


def _transport(name: str, config: McpServerConfig) -> Any:
    _check_complete(name, config)
    limit = config.max_result_kb << 11  # JSON and base64 are larger than their content
    if config.url is None:
        env = {key: value for key, value in config.env.items() if value != NOT_KEPT}
        wanted = (*config.pass_env, *(key for key in config.env if key not in env))
        return stdio_transport(
            config.command, env | {key: os.environ[key] for key in wanted if key in os.environ}, config.cwd, limit
        )
    return http_transport(name, config, limit)


def _check_complete(name: str, config: McpServerConfig) -> None:
    """Raise `ConfigError` for saved settings, which lack their secrets: the server would be called without them."""
    for header, value in config.headers.items():
        if NOT_KEPT in value:
            raise ConfigError(
                f"MCP server '{name}': the value of the header '{header}' was not kept with the saved settings",
                "use token_env for a bearer token, or set the header again",
            )
    if NOT_KEPT in (config.url or "") or any(NOT_KEPT in word for word in config.command):
        field = "url" if config.url is not None else "command"
        advice = "use token_env" if config.url is not None else "use pass_env"
        raise ConfigError(
            f"MCP server '{name}': a secret in its {field} was not kept with the saved settings",
            f"{advice}, or set {field} again",
        )


def _first_line(error: BaseException) -> str:
    """Return the first line of the error, or of the first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
