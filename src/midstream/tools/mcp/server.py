"""Serves any tools over MCP, on stdio or streamable HTTP: `serve_stdio`, `http_app`.

Calls go through a `ToolSession`, so arguments, policies and limits are handled as for every other caller.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urlsplit

from mcp.server.lowlevel import Server
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ListToolsResult,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from mcp_types import Tool as McpTool

from midstream.core.toolsets import ToolContent, ToolResult, ToolSpec
from midstream.core.types import ToolCall
from midstream.tools.errors import ToolOutage
from midstream.tools.session import ToolSession
from midstream.tools.toolbox import Toolbox


def make_server(toolbox: Toolbox, name: str = "midstream") -> Server[ToolSession]:
    """Return a server of all tools of `toolbox`, which are opened and closed with the server."""

    @asynccontextmanager
    async def opened(_: Server[ToolSession]) -> AsyncIterator[ToolSession]:
        async with AsyncExitStack() as resources:
            session = toolbox.session()
            await session.open(resources)
            yield session

    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        session: ToolSession = context.lifespan_context
        return ListToolsResult(tools=[_declared(spec) for spec in session.tools])

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        session: ToolSession = context.lifespan_context
        try:
            call, result = await session.run(params.name, params.arguments or {})
        except ToolOutage as outage:
            return _answer(outage.call, None)
        return _answer(call, result)

    return Server(name, version=version("midstream"), lifespan=opened, on_list_tools=list_tools, on_call_tool=call_tool)


async def serve_stdio(toolbox: Toolbox) -> None:
    """Serve on standard input and output until the client closes them."""
    from mcp.server.stdio import stdio_server

    server = make_server(toolbox)
    async with stdio_server() as (read_stream, write_stream):
        await server.run(read_stream, write_stream, server.create_initialization_options())


def http_app(toolbox: Toolbox) -> Any:
    """Return an ASGI app that serves streamable HTTP at `/mcp`, for loopback only."""
    return make_server(toolbox).streamable_http_app(host="127.0.0.1")


def _declared(spec: ToolSpec) -> McpTool:
    return McpTool(
        name=spec.name,
        description=spec.full_card,
        input_schema=dict(spec.parameters),
        annotations=ToolAnnotations(idempotent_hint=spec.policy.idempotent),
    )


def _answer(call: ToolCall, result: ToolResult | None) -> CallToolResult:
    """Return the text that an agent in this process would read, then images, sounds and files. `structured_content` is
    the data of a result with a single part."""
    parts = result.parts if result is not None else ()
    blocks = [_block(part, place) for place, part in enumerate(parts) if part.content is not None]
    data = parts[0].data if len(parts) == 1 and isinstance(parts[0].data, dict) and call.ok else None
    return CallToolResult(
        content=[TextContent(text=call.result), *blocks], structured_content=data, is_error=not call.ok
    )


def _block(part: ToolContent, place: int) -> ImageContent | AudioContent | EmbeddedResource:
    """A part that has bytes. A file is an embedded resource: as text if it is text, else in base64."""
    content = part.content or b""
    encoded = base64.b64encode(content).decode()
    if part.kind == "image":
        return ImageContent(data=encoded, mime_type=part.media_type)
    if part.media_type.startswith("audio/"):
        return AudioContent(data=encoded, mime_type=part.media_type)
    uri = part.source if urlsplit(part.source).scheme else f"result:///{place}/{quote(part.source)}"
    if part.media_type.startswith("text/") or part.media_type == "application/json":
        with suppress(UnicodeDecodeError):
            text = content.decode()
            return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=part.media_type, text=text))
    return EmbeddedResource(resource=BlobResourceContents(uri=uri, mime_type=part.media_type, blob=encoded))
