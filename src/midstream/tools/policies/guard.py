"""`GuardToolset`: enforces the time limit of each call and converts its exceptions to a classified result."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from midstream.core.toolsets import ToolResult
from midstream.tools.errors import RAISED, TIMEOUT, kind_of_error, reason
from midstream.tools.policies.wrapper import ToolsetWrapper


class GuardToolset(ToolsetWrapper):
    """Does not raise for a failing tool: its result has an `error_kind`."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        limit = self.specs[name].timeout_s
        task = asyncio.create_task(self._call(name, arguments))
        try:
            # `wait`, not `wait_for`: a tool that ignores cancellation must not block the trajectory
            await asyncio.wait({task}, timeout=limit)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            return ToolResult.failure(TIMEOUT, f"{name} took longer than {limit:g} s")
        if task.cancelled():
            return ToolResult.failure(RAISED, f"{name} was cancelled")
        return task.result()

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        try:
            result = await self.inner.call(name, arguments)
        except (Exception, SystemExit) as error:
            return ToolResult.failure(kind_of_error(error), reason(error))
        return replace(result, error_kind=RAISED) if result.is_error and not result.error_kind else result
