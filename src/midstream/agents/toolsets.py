"""The tools of a flow's config: built-in ones by name, a user's own, and those of MCP servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midstream.tools.load import LoadedTools, load
from midstream.tools.toolbox import ToolsetFactory

if TYPE_CHECKING:
    from midstream.agents.config import FlowConfig

MORE = {
    "memory_retrieve": "midstream.memory.retrieve:memory_retrieve",
    "plans": "midstream.plans.toolset:plans",
}
"""Built-in tools of packages that `midstream.tools` does not know."""


def load_flow_tools(flow: FlowConfig) -> LoadedTools:
    """Load what `flow.tools`, `flow.tool_settings` and `flow.mcp_servers` name."""
    loaded = load(flow.tools, flow.tool_settings, MORE)
    if not flow.mcp_servers:
        return loaded
    from midstream.tools.mcp.client import McpToolset

    servers = flow.mcp_servers
    return LoadedTools(loaded.tools, [*loaded.toolsets, ToolsetFactory(lambda: McpToolset(servers))])
