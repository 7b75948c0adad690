"""How to reach an MCP server. Needs no MCP package."""

from __future__ import annotations

from pydantic import Field, model_validator

from midstream.core.config import Config


class McpServerConfig(Config):
    """One MCP server: a program (`command`, over stdio) or an address (`url`, over streamable HTTP)."""

    command: tuple[str, ...] = ()
    """The program and its arguments. Each trajectory starts one of its own, unless `shared`."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program, besides PATH, HOME and the like."""
    pass_env: tuple[str, ...] = ()
    """Names of environment variables to pass on to the program."""
    cwd: str | None = None
    """Where the program runs."""
    url: str | None = None
    """The address of a server, such as http://127.0.0.1:8000/mcp."""
    headers: dict[str, str] = Field(default_factory=dict)
    """HTTP headers to send. Saved settings keep their names only; `token_env` is kept."""
    token_env: str | None = None
    """Environment variable with a bearer token."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds a call may take."""
    start_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds until the server must have answered and listed its tools."""
    shared: bool = False
    """Whether all trajectories of a process share one connection. Only for servers without state of their own."""
    required: bool = False
    """Whether a trajectory fails (as infrastructure) when the server cannot be reached. Otherwise its tools are missing
    and a warning is logged."""
    prefix: bool = False
    """Whether its tools are called `server_tool`. Otherwise only those whose name another server also has."""
    trust_annotations: bool = False
    """Whether to believe what the server says of its tools: idempotent and read-only tools are repeated after a
    timeout, destructive ones need approval."""
    tools: tuple[str, ...] | None = None
    """The tools to use; all of them if left out."""
    max_result_kb: int = Field(default=1024, ge=1)
    """Largest result; a larger one fails the call."""

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> McpServerConfig:
        if bool(self.command) == (self.url is not None):
            raise ValueError("give either command or url")
        return self
