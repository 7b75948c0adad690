"""`Toolset`: tools that are opened, listed, called and closed, described by JSON schemas.

Functions, memory, an index, an MCP server or a sandbox can all be toolsets. A flow uses a toolset with
`AgentFlowBase.use_toolset`. `midstream.tools` applies argument checks, time limits, retries and budgets, so a toolset
need not implement them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from midstream.core.types import ToolSchema

DEFAULT_TIMEOUT_S = 10.0
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """How calls of a tool are run, in addition to its time limit."""

    retries: int = 0
    """Further attempts after a transient failure."""
    backoff_s: float = 0.5
    """Maximum wait before the first retry, doubled with each retry. The wait is drawn between 0 and this maximum (full
    jitter)."""
    max_backoff_s: float = 10.0
    """Limit on the maximum wait."""
    idempotent: bool = False
    """Whether a call may be repeated if it is unknown whether it was carried out: after a timeout or a lost
    connection."""
    cost: float = 0.0
    """Cost of one call, in the unit of the budget."""
    approval: bool = False
    """Whether each call needs approval."""
    fallback: tuple[str, ...] = ()
    """Tools to try, in order, when this one fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolExample:
    """An example call, shown in a tool's card."""

    arguments: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class ToolSpec:
    """Name, description, JSON schema, policy and card of one tool."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NO_ARGUMENTS)
    """JSON schema of the arguments object."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Time limit of one attempt."""
    policy: ToolPolicy = ToolPolicy()
    returns: str = ""
    """Result of a call, in a word or two."""
    limits: tuple[str, ...] = ()
    """What the tool cannot do."""
    best_practices: tuple[str, ...] = ()
    """How to use it well."""
    examples: tuple[ToolExample, ...] = ()

    @property
    def signature(self) -> str:
        """Return the call as a prompt shows it: `search(query: string, limit: integer = 5, lang?: string)`."""
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
        """Return the declaration in OpenAI's format, for chat templates."""
        return tool_schema(self.name, self.description, self.parameters)

    @property
    def card(self) -> str:
        """Return signature and first line of the description, for a list of tools in a prompt."""
        first_line = self.description.partition("\n")[0]
        return f"{self.signature} - {first_line}" if first_line else self.signature

    @property
    def full_card(self) -> str:
        """Return the card with full description, limits, best practices and examples, one per line."""
        lines = [f"{self.signature} -> {self.returns}" if self.returns else self.signature]
        lines += [line for line in self.description.splitlines() if line.strip()]
        lines += [f"Limit: {limit}" for limit in self.limits]
        lines += [f"Best practice: {practice}" for practice in self.best_practices]
        for example in self.examples:
            call = json.dumps({"tool": self.name, "args": dict(example.arguments)}, ensure_ascii=False)
            lines.append(f"Example: {call}" + (f" - {example.description}" if example.description else ""))
        return "\n  ".join(lines)


def tool_schema(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> ToolSchema:
    """Declare a tool in OpenAI's format, for chat templates."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContent:
    """One part of a tool's result. `text` is its form for a text-only model."""

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
    """The parts of a tool's result, in order. `is_error` marks a failure that the tool reports.

    Wrappers of `midstream.tools.policies` set the other fields."""

    parts: tuple[ToolContent, ...]
    is_error: bool = False
    error_kind: str = ""
    """Kind of a failure, as in `ToolCall.error_kind`; empty on success, and on a failure not yet classified."""
    attempts: int = 1
    """Number of attempts, including retries."""
    answered_by: str = ""
    """The fallback tool that answered; empty if the called tool did."""

    @property
    def text(self) -> str:
        """All parts as text."""
        return "\n".join(part.text for part in self.parts)

    @classmethod
    def of(cls, value: Any, source: str = "") -> ToolResult:
        """Return a result with one part: text for a string, data for a list or dict, else `str(value)` as text. A
        result is returned unchanged."""
        if isinstance(value, ToolResult):
            return value
        if isinstance(value, dict | list | tuple):
            text = json.dumps(value, ensure_ascii=False, default=str)
            return cls((ToolContent(kind="data", text=text, data=value, source=source),))
        return cls((ToolContent(kind="text", text=value if isinstance(value, str) else str(value), source=source),))

    @classmethod
    def failure(cls, kind: str, reason: str) -> ToolResult:
        """Return the result of a failed call."""
        return cls((ToolContent(kind="text", text=reason),), is_error=True, error_kind=kind)


class Toolset(Protocol):
    """A set of tools with a lifetime. A call that fails raises, or returns a result with `is_error`.

    A toolset whose calls change only its own state may have an attribute `resume = "replay"`: a resumed attempt then
    repeats the recorded calls. For any other toolset the recorded results are used, and no call is repeated."""

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
