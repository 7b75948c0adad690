"""Settings of the connection to an MCP server. Needs no MCP package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from midstream.core.config import Config


class McpOAuthConfig(Config):
    """Credentials of a program, exchanged for access tokens (OAuth 2.1, grant `client_credentials`)."""

    issuer: str = Field(pattern="^https?://")
    """Address of the authorization server. The secret is sent to no other address, whatever the MCP server says."""
    client_id: str
    """Id of this program at the authorization server."""
    secret_env: str
    """Environment variable with the client secret."""
    scope: str | None = None
    """Requested scopes, separated by spaces."""
    method: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    """How the secret is sent: in a header, or in the body."""


class McpServerConfig(Config):
    """One MCP server: a program (`command`, over stdio) or an address (`url`, over streamable HTTP)."""

    command: tuple[str, ...] = ()
    """The program and its arguments. Each trajectory starts its own process, unless `shared`."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program, in addition to PATH, HOME and the like."""
    pass_env: tuple[str, ...] = ()
    """Names of environment variables to pass on to the program."""
    cwd: str | None = None
    """Working directory of the program."""
    url: str | None = None
    """Address of a server, such as http://127.0.0.1:8000/mcp."""
    headers: dict[str, str] = Field(default_factory=dict)
    """HTTP headers to send. Saved settings keep their names only; `token_env` is kept."""
    token_env: str | None = None
    """Environment variable with a bearer token."""
    oauth: McpOAuthConfig | None = None
    """Credentials for access tokens."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Time limit of a call, in seconds."""
    start_timeout_s: float = Field(default=30.0, gt=0)
    """Time limit for connecting and listing the tools, in seconds."""
    shared: bool = False
    """Whether all trajectories of a process share one connection. Only for stateless servers."""
    required: bool = False
    """Whether a trajectory fails (as infrastructure) if the server cannot be reached. Otherwise its tools are missing,
    with a warning."""
    prefix: bool = False
    """Whether its tools get names of the form `server_tool`. Otherwise only tools whose name another server has too."""
    trust_annotations: bool = False
    """Whether to trust the server's annotations: idempotent and read-only tools are repeated after a timeout,
    destructive tools need approval."""
    elicitation: Literal["off", "defaults"] = "off"
    """Answer to a server that asks the user something during a call. `off`: no user is available. `defaults`: the
    defaults of its form; a form without them is declined."""
    tools: tuple[str, ...] | None = None
    """The tools to use. Default: all."""
    max_result_kb: int = Field(default=1024, ge=1)
    """Size limit of a result. A larger one fails the call."""

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> McpServerConfig:
        if bool(self.command) == (self.url is not None):
            raise ValueError("give either command or url")
        if self.oauth is not None and (self.url is None or self.token_env is not None):
            raise ValueError("oauth needs a url, and excludes token_env")
        return self
