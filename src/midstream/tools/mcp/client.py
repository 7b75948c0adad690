"""`McpToolset`: the tools of MCP servers as one toolset.

A server that cannot be reached is left out with a warning, unless it is required. A server that dies, hangs, floods the
connection or breaks the protocol fails its own calls only; the error names it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from mcp_types import Tool as McpTool

from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.core.toolsets import ToolContent, ToolPolicy, ToolResult, ToolSpec
from midstream.tools.errors import ToolError
from midstream.tools.json_schema import check_schema
from midstream.tools.mcp.config import McpServerConfig
from midstream.tools.mcp.connection import McpConnection
from midstream.tools.shared import SharedResources

MAX_DESCRIPTION_CHARS = 2000
TRUSTED_RETRIES = 1
"""Retries of a tool that a trusted server declares idempotent."""
_log = logging.getLogger(__name__)


class McpToolset:
    """The tools of `servers`, by their names in the config."""

    def __init__(self, servers: Mapping[str, McpServerConfig]) -> None:
        self._servers = servers
        self._connections: dict[str, McpConnection] = {}
        self._tools: dict[str, tuple[McpConnection, str]] = {}

    async def open(self) -> None:
        """Connect to all servers at once. Raises `ToolUnavailable` when a required one cannot be reached."""
        try:
            results = await asyncio.gather(*map(self._connect, self._servers), return_exceptions=True)
            for name, error in zip(self._servers, results, strict=True):
                if error is None:
                    continue
                if self._servers[name].required or not isinstance(error, ToolUnavailable):
                    raise error
                _log.warning("%s; its tools are left out", error)
        except BaseException:
            await self.close()
            raise

    async def list(self) -> Sequence[ToolSpec]:
        """Return the tools. Those with a name or schema that no model could use are left out with a warning."""
        offered = [
            (connection, tool)
            for connection in (self._connections[name] for name in self._servers if name in self._connections)
            for tool in connection.tools
            if connection.config.tools is None or tool.name in connection.config.tools
        ]
        names = Counter(_plain_name(tool.name) for _, tool in offered)
        specs: list[ToolSpec] = []
        for connection, tool in offered:
            name = _plain_name(tool.name)
            if connection.config.prefix or names[name] > 1:
                name = f"{_plain_name(connection.name)}_{name}"
            spec = _spec(name, tool, connection.config)
            try:
                check_schema(spec)
            except ConfigError as error:
                _log.warning("MCP server '%s': %s; it is left out", connection.name, error.message)
                continue
            if name not in self._tools:
                specs.append(spec)
                self._tools[name] = (connection, tool.name)
        return specs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        connection, tool = self._tools[name]
        result = _result(await connection.call(tool, arguments))
        size = sum(len(part.text) + len(part.content or b"") for part in result.parts)
        if size > connection.config.max_result_kb << 10:
            limit = connection.config.max_result_kb
            raise ToolError(f"MCP server '{connection.name}': the result is {size >> 10} kB, above {limit} kB")
        return result

    async def close(self) -> None:
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(_disconnect(name, self._servers[name], one) for name, one in connections.items()))

    async def _connect(self, name: str) -> None:
        """Connect to one server, and remember it immediately, so that it is closed even if opening the others is
        cancelled."""
        config = self._servers[name]

        async def opened() -> McpConnection:
            connection = McpConnection(name, config)
            await connection.start()
            return connection

        self._connections[name] = await (_shared.acquire(_key(name, config), opened) if config.shared else opened())


async def _disconnect(name: str, config: McpServerConfig, connection: McpConnection) -> None:
    await (_shared.release(_key(name, config)) if config.shared else connection.close())


def _key(name: str, config: McpServerConfig) -> str:
    return f"{name} {config.model_dump_json()}"


async def _close(connection: McpConnection) -> None:
    await connection.close()


_shared: SharedResources[McpConnection] = SharedResources(_close)


def _plain_name(name: str) -> str:
    """Return `name` without the dots and slashes that MCP allows and models cannot use."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _spec(name: str, tool: McpTool, config: McpServerConfig) -> ToolSpec:
    policy = ToolPolicy()
    if config.trust_annotations:
        annotations = tool.annotations or ToolAnnotations()
        idempotent = bool(annotations.read_only_hint or annotations.idempotent_hint)
        policy = ToolPolicy(
            idempotent=idempotent,
            retries=TRUSTED_RETRIES if idempotent else 0,
            approval=bool(annotations.destructive_hint and not annotations.read_only_hint),
        )
    return ToolSpec(
        name=name,
        description=(tool.description or "")[:MAX_DESCRIPTION_CHARS],
        parameters=tool.input_schema,
        timeout_s=config.timeout_s,
        policy=policy,
    )


def _result(answer: CallToolResult) -> ToolResult:
    parts = [_part(block) for block in answer.content]
    if answer.structured_content is not None:
        data = ToolResult.of(answer.structured_content).parts[0]
        if not parts:
            parts = [data]
        elif len(parts) == 1 and parts[0].kind == "text":
            parts = [ToolContent(kind="data", text=parts[0].text, data=answer.structured_content)]
    return ToolResult(tuple(parts), is_error=answer.is_error)


def _part(block: Any) -> ToolContent:
    match block:
        case TextContent():
            return ToolContent(kind="text", text=block.text)
        case ImageContent():
            return _binary("image", block.data, block.mime_type, "")
        case AudioContent():
            return _binary("file", block.data, block.mime_type, "")
        case ResourceLink():
            return ToolContent(kind="text", text=f"[{block.name}: {block.uri}]", source=str(block.uri))
        case EmbeddedResource():
            resource = block.resource
            if isinstance(resource, TextResourceContents):
                media_type = resource.mime_type or ""
                return ToolContent(kind="text", text=resource.text, media_type=media_type, source=str(resource.uri))
            return _binary("file", resource.blob, resource.mime_type or "", str(resource.uri))
        case _:
            return ToolContent(kind="text", text=f"[{type(block).__name__}]")


def _binary(kind: Any, data: str, media_type: str, source: str) -> ToolContent:
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise ToolError("the result holds content that is not base64") from None
    text = f"[{kind} {media_type}, {len(content)} bytes]"
    return ToolContent(kind=kind, text=text, content=content, media_type=media_type, source=source)
