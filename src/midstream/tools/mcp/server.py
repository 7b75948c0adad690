"""Serves any tools over MCP, on stdio or streamable HTTP: `serve_stdio`, `http_app`.

Calls go through a `ToolSession`, so arguments, policies and limits are handled as for every other caller.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from mcp.server.lowlevel import Server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    TextContent,
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
    """Return the text that an agent in this process would read, then images. `structured_content` is the data of a
    result with a single part."""
    parts = result.parts if result is not None else ()
    images = [_image(part) for part in parts if part.kind == "image" and part.content is not None]
    data = parts[0].data if len(parts) == 1 and isinstance(parts[0].data, dict) and call.ok else None
    return CallToolResult(
        content=[TextContent(text=call.result), *images], structured_content=data, is_error=not call.ok
    )


def _image(part: ToolContent) -> ImageContent:
    return ImageContent(data=base64.b64encode(part.content or b"").decode(), mime_type=part.media_type)
