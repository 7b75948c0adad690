"""`BudgetToolset`: limits one trajectory's calls, seconds and cost, per tool and over all tools."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midstream.core.toolsets import ToolResult, Toolset
from midstream.core.types import ToolCall
from midstream.tools.config import Budget
from midstream.tools.errors import OVER_BUDGET
from midstream.tools.policies.wrapper import ToolsetWrapper


@dataclass(slots=True)
class Spent:
    """The used part of a budget."""

    calls: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    def refusal(self, budget: Budget, cost: float) -> str:
        """Return why a call of this `cost` exceeds `budget`; empty if it does not."""
        if budget.calls is not None and self.calls >= budget.calls:
            return f"no tool calls are left (at most {budget.calls})"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return f"no time for tools is left (at most {budget.seconds:g} s)"
        if budget.cost is not None and self.cost + cost > budget.cost:
            return f"the call costs {cost:g}, and {budget.cost - self.cost:g} is left of {budget.cost:g}"
        return ""


class BudgetToolset(ToolsetWrapper):
    """Refuses calls that exceed a budget as `over_budget`, free of charge. A call and its retries count once."""

    def __init__(self, inner: Toolset, total: Budget, by_tool: Mapping[str, Budget]) -> None:
        super().__init__(inner)
        self.total, self.by_tool = total, by_tool
        self.spent = Spent()
        self._spent_by_tool: dict[str, Spent] = {}

    @property
    def remaining(self) -> int | None:
        """Number of remaining calls of the total budget; None without a limit."""
        return None if self.total.calls is None else max(0, self.total.calls - self.spent.calls)

    def charge(self, name: str) -> None:
        """Charge a call of `name` that did not run."""
        self.spent.calls += 1
        self._of(name).calls += 1

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        cost = self.specs[name].policy.cost
        own, limit = self._of(name), self.by_tool.get(name, Budget())
        if refused := self.spent.refusal(self.total, cost):
            return ToolResult.failure(OVER_BUDGET, refused)
        if refused := own.refusal(limit, cost):
            return ToolResult.failure(OVER_BUDGET, f"{name}: {refused}")
        # before the call, so that concurrent calls count too
        self._spend(name, cost)
        started = time.perf_counter()
        try:
            return await self.inner.call(name, arguments)
        finally:
            for spent in (self.spent, own):
                spent.seconds += time.perf_counter() - started

    def restore(self, call: ToolCall) -> None:
        if call.error_kind == OVER_BUDGET:
            return
        self._spend(call.tool, self.specs[call.tool].policy.cost)
        for spent in (self.spent, self._of(call.tool)):
            spent.seconds += call.latency_s
        super().restore(call)

    def _spend(self, name: str, cost: float) -> None:
        for spent in (self.spent, self._of(name)):
            spent.calls += 1
            spent.cost += cost

    def _of(self, name: str) -> Spent:
        return self._spent_by_tool.setdefault(name, Spent())
