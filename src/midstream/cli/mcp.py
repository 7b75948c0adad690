"""`midstream mcp`: serves tools to MCP clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from midstream.tools.toolbox import Toolbox


@click.command(name="mcp")
@click.argument("tools", nargs=-1)
@click.option("--set", "overrides", multiple=True, metavar="TOOL.KEY=VALUE", help="A setting of a tool, as YAML.")
@click.option("--agent", "agents", multiple=True, metavar="CONFIG|RUN", help="An agent to serve as a tool; repeatable.")
@click.option("--store", metavar="FILE|URL", help="Where to record the agents' trajectories. Default: nowhere.")
@click.option("--trust", is_flag=True, help="Allow agents of runs from elsewhere to run code of their configs.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
@click.option("--port", type=click.IntRange(0, 65535), help="Serve streamable HTTP at http://127.0.0.1:PORT/mcp.")
def command(
    tools: tuple[str, ...],
    overrides: tuple[str, ...],
    agents: tuple[str, ...],
    store: str | None,
    trust: bool,
    runs_dir: str,
    port: int | None,
) -> None:
    """Serve TOOLS and agents to MCP clients, on standard input and output or, with --port, over HTTP on this machine.

    TOOLS are built-in names (calculator, search, python, ...) or package.module:attribute of your own. An agent takes a
    question and returns its answer. Over HTTP all clients share the tools, and `python` keeps no variables.
    """
    from midstream.agents.toolsets import MORE
    from midstream.core.config import apply_overrides
    from midstream.tools.load import load
    from midstream.tools.mcp.server import serve_stdio
    from midstream.tools.toolbox import Toolbox, ToolsetFactory

    if not tools and not agents:
        raise click.UsageError("nothing to serve: name tools, or an agent with --agent")
    settings: dict[str, Any] = apply_overrides({}, overrides)
    if port is not None and "python" in tools:
        settings["python"] = {**settings.get("python", {}), "state": False}
    loaded = load(tools, settings, MORE)
    toolsets = list(loaded.toolsets)
    if agents:
        from midstream.evaluate.agent_tools import AgentToolset, find_agents

        found = find_agents(agents, runs_dir)
        toolsets.append(ToolsetFactory(lambda: AgentToolset(found, store, trust=trust)))
    toolbox = Toolbox(loaded.tools, toolsets=toolsets, max_result_chars=100_000)
    if port is None:
        asyncio.run(serve_stdio(toolbox))
    else:
        _serve_http(toolbox, port)


def _serve_http(toolbox: Toolbox, port: int) -> None:
    import uvicorn

    from midstream.tools.mcp.server import http_app

    config = uvicorn.Config(http_app(toolbox), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    started = server.startup

    async def startup(sockets: Any = None) -> None:
        await started(sockets)
        for one in server.servers:
            for socket in one.sockets:
                click.echo(f"http://127.0.0.1:{socket.getsockname()[1]}/mcp", err=True)

    server.startup = startup
    server.run()
