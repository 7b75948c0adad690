"""Budgets of one attempt: model calls, sampled tokens, tool calls, seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from midstream.core import clock
from midstream.core.config import Config

if TYPE_CHECKING:
    from midstream.agents.base import AgentFlowBase


class AgentBudget(Config):
    """Limits of one attempt. When one is reached, the agent starts nothing new and answers from what it knows."""

    model_calls: int | None = Field(default=None, ge=1)
    """Calls of models, over all roles."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens sampled, over all roles."""
    tool_calls: int | None = Field(default=None, ge=0)
    """Tool calls."""
    seconds: float | None = Field(default=None, gt=0)
    """Wall time. Unlike the others it makes an attempt depend on the speed of the machine."""


class Spending:
    """What an attempt has used of its budget."""

    def __init__(self, flow: AgentFlowBase, budget: AgentBudget) -> None:
        self._flow, self._budget = flow, budget
        self._began = clock.monotonic()

    @property
    def exhausted(self) -> str:
        """Name of the first limit that is reached; empty while there is room."""
        budget, steps = self._budget, self._flow.steps
        used = {
            "model_calls": len(steps),
            "tokens": sum(len(step.response_ids) for step in steps),
            "tool_calls": len(self._flow.session.tool_calls),
            "seconds": clock.monotonic() - self._began,
        }
        for name, amount in used.items():
            limit = getattr(budget, name)
            if limit is not None and amount >= limit:
                return name
        return ""
