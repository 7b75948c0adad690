"""The constraint of a call: what its tool choice and its response format demand of the reply."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.errors import Unsupported
from midstream.core.types import Constraint, ToolSchema
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.reply import ToolChoice


def constrain(
    chat_format: ChatFormat,
    tools: Sequence[ToolSchema],
    *,
    tool_choice: ToolChoice = "auto",
    response_format: Mapping[str, Any] | Constraint | None = None,
    parallel: bool = True,
) -> tuple[tuple[ToolSchema, ...], Constraint | None]:
    """Return the tools to declare, and the constraint that enforces `tool_choice` and, for a reply that calls no tool,
    `response_format`: OpenAI's, or a constraint of the whole reply. Raises `Unsupported` if that is impossible."""
    if isinstance(response_format, Constraint):
        if tools and tool_choice != "none":
            raise Unsupported("a constraint of the whole reply leaves no room for tool calls; offer no tools with it")
        return (), response_format
    if tool_choice == "none":
        return (), response_constraint(chat_format, response_format)
    calls = chat_format.constraint(tools, tool_choice, parallel)
    answer = response_constraint(chat_format, response_format, tools, parallel)
    return tuple(tools), calls or answer


def response_constraint(
    chat_format: ChatFormat,
    wanted: Mapping[str, Any] | None,
    tools: Sequence[ToolSchema] = (),
    parallel: bool = True,
) -> Constraint | None:
    """Return the constraint for OpenAI's `response_format`: None for text, else JSON, or calls of `tools`. Raises
    `Unsupported`."""
    kind = (wanted or {}).get("type", "text")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return chat_format.answer({"type": "object"}, tools, parallel)
    schema = (wanted.get("json_schema") or {}).get("schema")
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise Unsupported(
            f"response_format {json.dumps(dict(wanted))[:200]}: known are text, json_object and json_schema"
        )
    return chat_format.answer(schema, tools, parallel)
