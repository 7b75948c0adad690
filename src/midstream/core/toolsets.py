"""`Toolset`: tools that are opened, listed, called and closed, described by JSON schemas.

Functions, memory, an index, an MCP server or a sandbox can all be one. A flow uses a toolset by
`AgentFlowBase.use_toolset`; `midstream.tools` checks arguments, time limits and budgets, so a toolset need not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from midstream.core.types import ToolSchema

DEFAULT_TIMEOUT_S = 10.0
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, eq=False, kw_only=True)
class ToolSpec:
    """Name, description and JSON schema of one tool."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NO_ARGUMENTS)
    """JSON schema of the arguments object."""
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def signature(self) -> str:
        """The call as a prompt shows it: `search(query: string, limit: integer = 5, lang?: string)`."""
        required = self.parameters.get("required", ())
        parts: list[str] = []
        for name, schema in self.parameters.get("properties", {}).items():
            kind = schema.get("type", "any") if isinstance(schema, Mapping) else "any"
            optional = "" if name in required or (isinstance(schema, Mapping) and "default" in schema) else "?"
            text = f"{name}{optional}: {kind if isinstance(kind, str) else ' | '.join(map(str, kind))}"
            if isinstance(schema, Mapping) and "default" in schema:
                text += f" = {json.dumps(schema['default'], ensure_ascii=False)}"
            parts.append(text)
        return f"{self.name}({', '.join(parts)})"

    @property
    def schema(self) -> ToolSchema:
        """The declaration in OpenAI's format, as chat templates read it."""
        return tool_schema(self.name, self.description, self.parameters)

    @property
    def card(self) -> str:
        """Signature and first line of the description, for a list of tools in a prompt."""
        first_line = self.description.partition("\n")[0]
        return f"{self.signature} - {first_line}" if first_line else self.signature


def tool_schema(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> ToolSchema:
    """Declare a tool in OpenAI's format, as chat templates read it."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContent:
    """One part of a tool's result. `text` is what a text-only model sees of it."""

    kind: Literal["text", "data", "image", "file"]
    text: str
    data: Any = None
    """JSON value of a part of kind `data`."""
    content: bytes | None = None
    """Bytes of an image or a file."""
    media_type: str = ""
    source: str = ""
    """Provenance: a URL, a document or a path."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The parts of a tool's result, in order. `is_error` marks a failure that the tool itself reports."""

    parts: tuple[ToolContent, ...]
    is_error: bool = False

    @property
    def text(self) -> str:
        """All parts as text."""
        return "\n".join(part.text for part in self.parts)

    @classmethod
    def of(cls, value: Any, source: str = "") -> ToolResult:
        """Return a result with one part: text for a string, data for a list or dict, else text by `str`."""
        if isinstance(value, dict | list | tuple):
            text = json.dumps(value, ensure_ascii=False, default=str)
            return cls((ToolContent(kind="data", text=text, data=value, source=source),))
        return cls((ToolContent(kind="text", text=value if isinstance(value, str) else str(value), source=source),))


class Toolset(Protocol):
    """A set of tools with a lifetime. A call that fails raises, or returns a result with `is_error`."""

    async def open(self) -> None:
        """Acquire resources. An implementation that raises must release them first; `close` is then not called."""
        ...

    async def list(self) -> Sequence[ToolSpec]:
        """Return the available tools. Called once, after `open`."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run the tool `name`. Calls may overlap; a call that exceeds the tool's `timeout_s` is cancelled."""
        ...

    async def close(self) -> None:
        """Release all resources."""
        ...
