"""`ApprovalToolset`: asks before each call of a tool whose policy needs approval."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from midstream.core.toolsets import ToolResult, Toolset, ToolSpec
from midstream.tools.errors import REFUSED
from midstream.tools.policies.wrapper import ToolsetWrapper

Approve = Callable[[ToolSpec, Mapping[str, Any]], Awaitable[bool]]
"""Decides whether a call may run."""


class ApprovalToolset(ToolsetWrapper):
    """Without `approve`, every call that needs approval is refused."""

    def __init__(self, inner: Toolset, approve: Approve | None = None) -> None:
        super().__init__(inner)
        self._approve = approve

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        spec = self.specs[name]
        if spec.policy.approval and (self._approve is None or not await self._approve(spec, arguments)):
            return ToolResult.failure(REFUSED, f"{name} needs approval, which was not given")
        return await self.inner.call(name, arguments)
