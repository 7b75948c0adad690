"""Tool calls as data: `{"tool": ..., "args": {...}}` in a model's text, and native calls of a chat message.

`call_schema` is the JSON schema of such text; sampling under it makes every call of a small model valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midstream.core.errors import MidstreamError
from midstream.core.toolsets import ToolSpec
from midstream.core.types import Message

MAX_STARTS = 64
"""Limit on the positions in a text at which a JSON object is tried."""
_DEFINITIONS = ("$defs", "definitions")
"""Keywords that hold a schema's definitions: the current one, and that of draft 7 and earlier."""


class UnreadableCall(MidstreamError):
    """The text contains no call. The message says what to write instead."""


@dataclass(frozen=True, slots=True)
class RequestedCall:
    """A call requested by a model, not validated: `args` may be anything it wrote."""

    tool: str
    args: Any
    id: str = ""
    """The id of a native call."""


def read_call(text: str) -> RequestedCall:
    """Return the first JSON object with a `tool` in `text`. Raises `UnreadableCall` if there is none."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _ in range(MAX_STARTS):
        if start < 0:
            break
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and isinstance(found.get("tool"), str):
            return RequestedCall(found["tool"], found.get("args", found.get("arguments", {})))
        start = text.find("{", start + 1)
    raise UnreadableCall('write one JSON object: {"tool": NAME, "args": {...}}')


def native_calls(message: Message) -> list[RequestedCall]:
    """Return the calls of an assistant's message. Arguments that are not JSON stay text, which no tool accepts."""
    calls: list[RequestedCall] = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        try:
            args: Any = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError):
            args = function["arguments"]
        calls.append(RequestedCall(function["name"], args, call.get("id") or ""))
    return calls


def call_schema(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of `tools`."""
    definitions: dict[str, Any] = {}
    options: list[dict[str, Any]] = []
    for tool in tools:
        schema = hoisted(tool.parameters, tool.name, definitions)
        options.append(
            {
                "type": "object",
                "properties": {"tool": {"const": tool.name}, "args": schema},
                "required": ["tool", "args"],
                "additionalProperties": False,
            }
        )
    result: dict[str, Any] = options[0] if len(options) == 1 else {"anyOf": options}
    return {**result, "$defs": definitions} if definitions else result


def hoisted(schema: Mapping[str, Any], owner: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return `schema` for use inside another schema: its definitions move to `definitions`, those of the root, and get
    the prefix `owner`."""

    def rewritten(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved_reference(item) if key == "$ref" else rewritten(item) for key, item in value.items()}
        return [rewritten(item) for item in value] if isinstance(value, list | tuple) else value

    def moved_reference(target: Any) -> Any:
        for keyword in _DEFINITIONS:
            if isinstance(target, str) and target.startswith(f"#/{keyword}/"):
                return f"#/$defs/{owner}.{target.removeprefix(f'#/{keyword}/')}"
        return target

    for keyword in _DEFINITIONS:
        definitions.update({f"{owner}.{name}": rewritten(item) for name, item in schema.get(keyword, {}).items()})
    return rewritten({key: item for key, item in schema.items() if key not in _DEFINITIONS})
