"""`BreakerToolset`: a circuit breaker. Pauses a tool after repeated failures of its infrastructure.

A timeout may be caused by the arguments of one trajectory's model, so the timeouts of a trajectory count once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.core import clock
from midstream.core.toolsets import ToolResult, Toolset
from midstream.tools.errors import TIMEOUT, UNAVAILABLE
from midstream.tools.policies.wrapper import ToolsetWrapper


@dataclass(slots=True)
class Breaker:
    """State of one tool's breaker: closed, open until a deadline, or probing with one call."""

    failures: int
    """Consecutive outages that open it. All timeouts of a trajectory count as one."""
    open_s: float
    """Seconds until one call may probe the tool."""
    _outages: int = 0
    _timed_out: set[object] = field(default_factory=set)
    """Trajectories whose timeout has been counted."""
    _open_until: float | None = None
    _probing: bool = False

    def admit(self) -> bool:
        """Whether a call may run now. After `open_s` a single call is admitted as a probe."""
        if self._open_until is None:
            return True
        if self._probing or clock.monotonic() < self._open_until:
            return False
        self._probing = True
        return True

    def settle(self, error_kind: str, trajectory: object) -> None:
        """Count the outcome of an admitted call of `trajectory`."""
        self._probing = False
        if error_kind not in (TIMEOUT, UNAVAILABLE):
            self._outages, self._open_until = 0, None
            self._timed_out.clear()
            return
        if error_kind == UNAVAILABLE or trajectory not in self._timed_out:
            self._outages += 1
        if error_kind == TIMEOUT:
            self._timed_out.add(trajectory)
        if self._outages >= self.failures:
            self._open_until = clock.monotonic() + self.open_s

    def release(self) -> None:
        """Undo `admit` for a call that ended without an outcome."""
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether calls are currently refused."""
        return self._open_until is not None and (self._probing or clock.monotonic() < self._open_until)


class BreakerToolset(ToolsetWrapper):
    """Fails calls of tools whose breaker is open as `unavailable`, without calling the tools. `breakers`, by tool name,
    are shared by all trajectories; each trajectory has its own `BreakerToolset`."""

    def __init__(self, inner: Toolset, breakers: dict[str, Breaker], failures: int, open_s: float) -> None:
        super().__init__(inner)
        self._breakers, self._failures, self._open_s = breakers, failures, open_s
        self._trajectory = object()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        breaker = self._breakers.setdefault(name, Breaker(self._failures, self._open_s))
        if not breaker.admit():
            return ToolResult.failure(UNAVAILABLE, f"{name} failed {self._failures} times in a row and is paused")
        try:
            result = await self.inner.call(name, arguments)
        except BaseException:
            breaker.release()
            raise
        breaker.settle(result.error_kind, self._trajectory)
        return result
