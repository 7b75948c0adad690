"""`ToolsetWrapper`: base of the wrappers; forwards everything to another toolset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.toolsets import ToolResult, Toolset, ToolSpec
from midstream.core.types import ToolCall


class ToolsetWrapper:
    """Forwards to `inner`. `specs` holds the tools listed by `inner`, by name."""

    def __init__(self, inner: Toolset) -> None:
        self.inner = inner
        self.specs: dict[str, ToolSpec] = {}

    async def open(self) -> None:
        await self.inner.open()

    async def list(self) -> Sequence[ToolSpec]:
        listed = await self.inner.list()
        self.specs = {spec.name: spec for spec in listed}
        return listed

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return await self.inner.call(name, arguments)

    def restore(self, call: ToolCall) -> None:
        """Count a recorded `call` that an interrupted trajectory made, as if it had been made here."""
        if isinstance(self.inner, ToolsetWrapper):
            self.inner.restore(call)

    async def close(self) -> None:
        await self.inner.close()
