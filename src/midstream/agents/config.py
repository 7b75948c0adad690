"""Config of an agent: its flow, the engine of each role, and its tools."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.engines.publication import NAME
from midstream.tools.config import ToolUseConfig
from midstream.tools.mcp.config import McpServerConfig


class RoleSamplingConfig(Config):
    """Sampling of one role; a key left out falls back to `rollout.sampling`."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of one response."""
    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    top_k: int | None = Field(default=None, ge=0)
    """Sample from the k most likely tokens; 0 means all."""
    stop: tuple[str, ...] | None = None
    """Text that ends a response."""


class RoleConfig(Config):
    """The engine of a module role, and its sampling."""

    engine: str = "policy"
    """`policy` (the model in training), `frozen` (the same model without its adapter), `rules` (no model: the module's
    rule), the URL of an OpenAI-compatible server, or `package.module:function`, your own function from a tokenizer to
    an engine."""
    model: str | None = None
    """Name of the model at a URL."""
    api_key_env: str | None = None
    """Environment variable with the API key for a URL."""
    train: bool | None = None
    """Train on this role's responses. Only applies to the engine `policy`. Null trains every role except those that
    the flow keeps frozen, such as a simulated user: they use the engine `frozen` instead."""
    adapter: str | None = None
    """Name of the LoRA adapter that this role samples with and trains. Roles that give the same name share it; roles
    without one share `policy.adapter`. Only for the engine `policy`."""
    sampling: RoleSamplingConfig = RoleSamplingConfig()
    """Sampling settings of this role."""

    @model_validator(mode="after")
    def _consistent(self) -> RoleConfig:
        if self.adapter is None:
            return self
        if self.engine != "policy":
            raise ValueError(f"adapter '{self.adapter}' is for the engine policy, and the engine is '{self.engine}'")
        if not NAME.fullmatch(self.adapter):
            raise ValueError(
                f"adapter '{self.adapter}' must be letters, digits, dots, dashes and underscores, and begin with a "
                "letter or digit"
            )
        return self


class FlowConfig(Config):
    """The agent."""

    name: str = "single_step_single_turn_agent"
    """Registered name of an agent flow, or `package.module:Class`."""
    flows_file: str | None = None
    """YAML file of flows to register: a list of `name` and `_target_`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The flow's own settings."""
    roles: dict[str, RoleConfig] = Field(default_factory=dict)
    """Engine and sampling of each module role; a role left out uses the policy."""
    tools: tuple[str, ...] = ()
    """Tools of the agent: built-in names, or `package.module:attribute`."""
    tool_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of built-in tools, by name: `{search: {k: 3}}`."""
    mcp_servers: dict[str, McpServerConfig] = Field(default_factory=dict)
    """MCP servers whose tools the agent has, by a name of your choice."""
    tool_use: ToolUseConfig = ToolUseConfig()
    """How tools are called: policies, budgets, selection, recording."""
    max_tool_calls: int | None = Field(default=None, ge=0)
    """Maximum tool calls of a trajectory."""
    max_result_chars: int = Field(default=2000, ge=80)
    """Maximum characters of a tool result shown to the agent."""
    mask_results: dict[str, float] = Field(default_factory=dict)
    """Input masking: share of the words in a tool's results that are replaced by `[MASK]`, by tool name
    (`{search: 0.3}`). Only applies to training attempts. Unrelated to the loss mask."""
