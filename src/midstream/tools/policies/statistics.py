"""`StatisticsToolset`: measures availability, latency and success of each tool over all trajectories."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.core.toolsets import ToolResult, Toolset
from midstream.tools.errors import TIMEOUT, UNAVAILABLE
from midstream.tools.policies.wrapper import ToolsetWrapper

WINDOW = 100
"""Number of latest attempts from which rates and latency are computed."""


@dataclass(slots=True)
class ToolStatistics:
    """Outcomes of one tool's attempts. Rates are over the latest `WINDOW` and None before the first."""

    attempts: int = 0
    _latest: deque[tuple[bool, bool, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, result: ToolResult, latency_s: float) -> None:
        """Count one attempt."""
        self.attempts += 1
        there = result.error_kind not in (TIMEOUT, UNAVAILABLE)
        self._latest.append((there, not result.is_error, latency_s))

    @property
    def availability(self) -> float | None:
        """Share of attempts that the tool answered, even with an error."""
        return statistics.fmean(there for there, _, _ in self._latest) if self._latest else None

    @property
    def success(self) -> float | None:
        """Share of attempts without an error."""
        return statistics.fmean(ok for _, ok, _ in self._latest) if self._latest else None

    @property
    def latency_s(self) -> float | None:
        """Median duration of an attempt in seconds."""
        return statistics.median(latency for _, _, latency in self._latest) if self._latest else None


class StatisticsToolset(ToolsetWrapper):
    """Counts each attempt in `statistics`, by tool name."""

    def __init__(self, inner: Toolset, statistics: dict[str, ToolStatistics]) -> None:
        super().__init__(inner)
        self._statistics = statistics

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        started = time.perf_counter()
        result = await self.inner.call(name, arguments)
        self._statistics.setdefault(name, ToolStatistics()).add(result, time.perf_counter() - started)
        return result
