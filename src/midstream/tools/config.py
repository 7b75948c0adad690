"""Settings of tool use: policies, budgets, the circuit breaker, selection, recording."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from midstream.core.config import Config


class Budget(Config):
    """Limits of one trajectory. A missing limit does not apply."""

    calls: int | None = Field(default=None, ge=0)
    """Calls, each counted once with its retries."""
    seconds: float | None = Field(default=None, ge=0)
    """Seconds spent in calls. The call that exceeds it still finishes."""
    cost: float | None = Field(default=None, ge=0)
    """Cost, in the unit of the tools' `cost`."""


class PolicyConfig(Config):
    """Changes to a tool's declared policy. Missing settings stay as declared."""

    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds one attempt may take."""
    retries: int | None = Field(default=None, ge=0)
    """Further attempts after a transient failure."""
    backoff_s: float | None = Field(default=None, ge=0)
    """Maximum wait before the first retry, doubled with each retry. The wait is drawn between 0 and this maximum."""
    max_backoff_s: float | None = Field(default=None, ge=0)
    """Limit on the maximum wait."""
    idempotent: bool | None = None
    """Whether a call may be repeated after a timeout or a lost connection."""
    cost: float | None = Field(default=None, ge=0)
    """Cost of one call."""
    approval: bool | None = None
    """Whether each call needs approval. In training nobody can approve, so such a call is refused."""
    fallback: tuple[str, ...] | None = None
    """Tools to try, in order, when this one fails."""


class BreakerConfig(Config):
    """The circuit breaker of every tool, over all trajectories of a process."""

    failures: int = Field(default=5, ge=1)
    """Consecutive outages or timeouts after which a tool is paused. All timeouts of a trajectory count as one."""
    open_s: float = Field(default=30.0, gt=0)
    """Seconds of the pause; after it, one call may try the tool again."""


class SelectionConfig(Config):
    """Which tools a prompt shows. Those not shown can still be called."""

    k: int | None = Field(default=None, ge=1)
    """Show the k tools whose cards match the question best (BM25). Default: all."""
    always: tuple[str, ...] = ()
    """Tools that are always shown, in addition to the k."""
    card: Literal["line", "full"] = "line"
    """`line`: signature and first line of the description. `full`: also limits, best practices and examples."""


class ToolUseConfig(Config):
    """How an agent's tools are called."""

    default_tool: str | None = None
    """Tool that answers calls of tools that do not exist. Without it such a call fails, with the nearest name as a
    hint."""
    max_invalid: int = Field(default=3, ge=0)
    """Consecutive calls of a tool with wrong arguments that are returned for correction without counting against the
    budget; further ones count."""
    outage: Literal["fail", "report"] = "fail"
    """What happens when infrastructure fails a call, after retries and fallbacks. `fail`: the trajectory fails as
    infrastructure and is not trained on. `report`: the agent reads that the tool is unavailable and continues."""
    in_doubt: Literal["fail", "report", "repeat"] = "fail"
    """When an attempt is resumed (`rollout.resume_attempts`) and its process died during a call of a tool that is not
    idempotent. `fail`: the trajectory fails as infrastructure. `report`: the agent reads that the outcome is not known
    and goes on. `repeat`: the call is made again."""
    budget: Budget = Budget()
    """Limits over all tools."""
    budgets: dict[str, Budget] = Field(default_factory=dict)
    """Limits of single tools, by name."""
    policies: dict[str, PolicyConfig] = Field(default_factory=dict)
    """Changes to the policies of single tools, by name."""
    breaker: BreakerConfig = BreakerConfig()
    """The circuit breaker."""
    selection: SelectionConfig = SelectionConfig()
    """Which tools a prompt shows."""
    record: str | None = None
    """File to which every call is appended with its result."""
    replay: str | None = None
    """File of recorded calls that answers instead of the tools."""

    @model_validator(mode="after")
    def _one_of_record_and_replay(self) -> ToolUseConfig:
        if self.record is not None and self.replay is not None:
            raise ValueError("set record or replay, not both")
        return self
