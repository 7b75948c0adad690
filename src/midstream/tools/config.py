"""Settings of tool use: policies, budgets, the circuit breaker, selection, recording."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from midstream.core.config import Config


class Budget(Config):
    """Limits of one trajectory; a limit left out does not apply."""

    calls: int | None = Field(default=None, ge=0)
    """Calls, each counted once with its retries."""
    seconds: float | None = Field(default=None, ge=0)
    """Seconds spent in calls. The call that exceeds it still finishes."""
    cost: float | None = Field(default=None, ge=0)
    """Cost, in the unit of the tools' `cost`."""


class PolicyConfig(Config):
    """Changes to the policy a tool was declared with; a setting left out keeps the tool's own."""

    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds one attempt may take."""
    retries: int | None = Field(default=None, ge=0)
    """Further attempts after a transient failure."""
    backoff_s: float | None = Field(default=None, ge=0)
    """Longest wait before the first retry; it doubles with each one, and the wait is drawn from 0 to it."""
    max_backoff_s: float | None = Field(default=None, ge=0)
    """Longest wait between two attempts."""
    idempotent: bool | None = None
    """Whether a call may be repeated after a timeout or a lost connection."""
    cost: float | None = Field(default=None, ge=0)
    """Cost of one call."""
    approval: bool | None = None
    """Whether each call needs approval. In training there is nobody to ask: such a call is refused."""
    fallback: tuple[str, ...] | None = None
    """Tools to try, in order, when this one fails."""


class BreakerConfig(Config):
    """The circuit breaker of every tool, over all trajectories of a process."""

    failures: int = Field(default=5, ge=1)
    """Consecutive outages or timeouts after which a tool is not called for a while. All timeouts of a trajectory count
    as one."""
    open_s: float = Field(default=30.0, gt=0)
    """Seconds until one call may try the tool again."""


class SelectionConfig(Config):
    """Which tools a prompt shows. Those not shown can still be called."""

    k: int | None = Field(default=None, ge=1)
    """Show the k tools whose cards match the question best (BM25); all if left out."""
    always: tuple[str, ...] = ()
    """Tools that are shown whatever the question is, besides the k."""
    card: Literal["line", "full"] = "line"
    """`line`: signature and first line of the description. `full`: also limits, best practices and examples."""


class ToolUseConfig(Config):
    """How an agent's tools are called."""

    default_tool: str | None = None
    """Tool that answers a call of a tool that does not exist. Without it such a call fails and the nearest name is
    suggested."""
    max_invalid: int = Field(default=3, ge=0)
    """Calls of a tool with wrong arguments that are returned for correction, in a row and free of charge; further ones
    count against the budget."""
    outage: Literal["fail", "report"] = "fail"
    """When infrastructure fails a call, after retries and fallbacks. `fail`: the trajectory fails as infrastructure and
    is not trained on. `report`: the agent reads that the tool is unavailable and goes on."""
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
    """File to which every call and its result are added."""
    replay: str | None = None
    """File of recorded calls to answer from, instead of calling the tools."""

    @model_validator(mode="after")
    def _one_of_record_and_replay(self) -> ToolUseConfig:
        if self.record is not None and self.replay is not None:
            raise ValueError("set record or replay, not both")
        return self
