"""Config of the rollout: which flow, who speaks for its roles, which tools, and what happens to an attempt that
fails."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.core.config import Config


class SamplingConfig(Config):
    """Sampling of every role that does not say otherwise."""

    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of one response."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this mass."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many likeliest tokens; 0 is all."""
    stop: tuple[str, ...] = ()
    """Text that ends a response."""


class RoleSamplingConfig(Config):
    """Sampling of one role; a key left out falls back to `rollout.sampling`."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one response."""
    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sample from the smallest set of tokens with this mass."""
    top_k: int | None = Field(default=None, ge=0)
    """Sample from this many likeliest tokens; 0 is all."""
    stop: tuple[str, ...] | None = None
    """Text that ends a response."""


class RoleConfig(Config):
    """Who speaks for a module role."""

    engine: str = "policy"
    """`policy` (the model in training), `frozen` (the same model without its adapter), `rules` (no model: the module's
    rule), or the URL of an OpenAI-compatible server."""
    model: str | None = None
    """The model to ask for at a URL."""
    api_key_env: str | None = None
    """Environment variable that holds the key for a URL."""
    train: bool = True
    """Whether what this role says is trained on; only ever true of the engine `policy`."""
    sampling: RoleSamplingConfig = RoleSamplingConfig()
    """Sampling settings of this role."""


class FlowConfig(Config):
    """The agent."""

    name: str = "single_step_single_turn_agent"
    """Registered name of an agent flow, or `package.module:Class`."""
    flows_file: str | None = None
    """YAML file of flows to register: a list of `name` and `_target_`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The flow's own settings."""
    roles: dict[str, RoleConfig] = Field(default_factory=dict)
    """Who speaks for each module role; a role that is not named is the policy."""
    tools: tuple[str, ...] = ()
    """Tools the agent has: built-in names, or `package.module:attribute`."""
    max_tool_calls: int | None = Field(default=None, ge=0)
    """Tool calls a trajectory may make."""
    max_result_chars: int = Field(default=2000, ge=80)
    """Longest tool result shown to the agent."""
    mask_results: dict[str, float] = Field(default_factory=dict)
    """Input masking: share of the words of a tool's results that the agent is shown as `[MASK]`, by the tool's name
    (`{search: 0.3}`), in attempts that are trained on and in no other. Not to be mixed up with the loss mask."""


class ReplayConfig(Config):
    """Groups of earlier steps, learned from again."""

    capacity: int = Field(default=0, ge=0)
    """Groups kept, the newest ones; 0 is no replay."""
    share: float = Field(default=0.25, gt=0, lt=1)
    """Share of a step's groups that come from the buffer, as far as it has them; the others are sampled afresh. Rounded
    to whole groups, at least one of each."""
    sampling: Literal["uniform", "recent", "prioritised"] = "uniform"
    """`uniform`: every group in the buffer with the same chance. `recent`: the newest. `prioritised`: in proportion to
    the variance of the group's rewards."""

    def groups(self, tasks_per_step: int) -> int:
        """How many of a step's groups are to come from the buffer."""
        return min(max(round(self.share * tasks_per_step), 1), tasks_per_step - 1) if self.capacity else 0


class StoreSourceConfig(Config):
    """A store that others record into (a gateway, say), to train on instead of rolling out."""

    store: str
    """A file, or a `postgresql://` URL."""
    channel: str = "train"
    """Channel whose groups are taken."""
    lease_s: float = Field(default=3600.0, gt=0)
    """How long groups stay held after the run was last heard of; then others may have them."""
    wait_s: float = Field(default=600.0, gt=0)
    """How long a step waits for its groups. Then it takes those that are ready; when there are none, the run stops with
    what it has learned."""


class MaxFailedConfig(Config):
    """Most of a step's attempts that may fail, by cause. Past it the run stops and names the cause; 1 never does."""

    infrastructure: float = Field(default=0.5, ge=0, le=1)
    """Share that may fail because an engine, a judge or another service could not be reached."""
    reward: float = Field(default=0.5, ge=0, le=1)
    """Share that may fail because a reward component raised or took too long."""
    agent: float = Field(default=1.0, ge=0, le=1)
    """Share that may fail by the agent itself: its flow raised, its prompt outgrew the context, it took too long."""


class RolloutConfig(Config):
    """How trajectories are made."""

    source: StoreSourceConfig | None = None
    """Take groups from a store instead of making them; `midstream train --from-store` sets it."""

    group_size: int = Field(default=8, ge=1)
    """Trajectories per task (G)."""
    tasks_per_step: int = Field(default=6, ge=1)
    """Tasks per training step."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling of every role that does not say otherwise."""
    backfill: int = Field(default=0, ge=0)
    """Drop groups whose rewards are all equal and attempt other tasks in their place, for at most this many rounds a
    step; 0 keeps them, with their place in the denominators of the loss."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Most policy versions (updates) between sampling a step and learning from it. An older step keeps its place in the
    denominators of the loss, and its trajectory in its group's statistics, and is not trained on; a group whose oldest
    step is older leaves the replay buffer. `null` is no limit."""
    replay: ReplayConfig = ReplayConfig()
    """Groups of earlier steps, learned from again."""
    concurrency: int = Field(default=64, ge=1)
    """Trajectories under way at once."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Wall time one trajectory may take."""
    truncated: Literal["keep", "mask", "drop"] = "keep"
    """A trajectory with a response that hit `max_tokens`: `keep` trains on it; `mask` counts it in its group's
    statistics and in the denominators of the loss and trains nothing on it; `drop` leaves it out."""
    altered_sampling: Literal["keep", "mask"] = "keep"
    """A step that was not sampled plainly at its temperature, but greedily, under a constraint (a JSON schema, a
    demanded tool call), or with `top_p`, `top_k`, `min_p` or penalties: `keep` trains on it, as agents that call tools
    and write JSON would have little else; `mask` keeps its place in the denominators of the loss, and its trajectory in
    its group's statistics, and trains nothing on it."""
    failed: Literal["drop", "mask", "score"] = "mask"
    """A failed or timed-out trajectory: `drop` leaves it out of its group; `mask` leaves it out and keeps its place in
    the denominators of the loss; `score` gives it `reward.failed` and trains on it, but for failures of infrastructure,
    which never count as an outcome."""
    max_failed: MaxFailedConfig = MaxFailedConfig()
    """Most of a step's attempts that may fail, by cause, before the run stops. A first step in which every attempt
    failed stops it too."""

    @model_validator(mode="after")
    def _consistent(self) -> RolloutConfig:
        if self.replay.capacity and self.tasks_per_step < 2:
            raise ValueError("rollout.replay needs rollout.tasks_per_step of 2 or more: one group is sampled afresh")
        return self
