"""`CombinedToolset`: the tools of several open toolsets as one toolset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.errors import ConfigError, nearest
from midstream.core.toolsets import ToolResult, Toolset, ToolSpec
from midstream.tools.errors import ToolError


class CombinedToolset:
    """Sends each call to the toolset that provides the tool. Does not open or close the toolsets."""

    def __init__(self) -> None:
        self.specs: dict[str, ToolSpec] = {}
        self._owners: dict[str, Toolset] = {}

    def add(self, toolset: Toolset, specs: Sequence[ToolSpec]) -> None:
        """Add `specs`, the tools of `toolset`. Raises `ConfigError` for a name that is taken; then none is added."""
        added: dict[str, ToolSpec] = {}
        for spec in specs:
            if spec.name in self.specs or spec.name in added:
                raise ConfigError(f"two tools are named '{spec.name}'", "give one of them another name")
            added[spec.name] = spec
        self.specs |= added
        self._owners |= dict.fromkeys(added, toolset)

    def rebuilds(self, name: str) -> bool:
        """Whether the toolset of the tool `name` declares `resume = "replay"`."""
        return getattr(self._owners.get(name), "resume", "") == "replay"

    async def open(self) -> None: ...

    async def list(self) -> Sequence[ToolSpec]:
        return list(self.specs.values())

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        owner = self._owners.get(name)
        if owner is None:
            raise ToolError(f"unknown tool '{name}'; {nearest(name, self.specs)}")
        return await owner.call(name, arguments)

    async def close(self) -> None: ...
