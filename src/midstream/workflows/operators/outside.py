"""Operators that use what is outside the model: Search (knowledge) and Tool (any tool of the agent)."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.operators.declare import operator

MAX_PASSAGES = 10


class Found(TypedDict):
    response: str
    passages: list[str]


class Called(TypedDict):
    result: str
    ok: bool


@operator(name="Search", calls=0, needs=("search",))
async def search(context: OperatorContext, query: str, k: int = 3) -> Found:
    """Finds passages of the knowledge for a query. Calls no model."""
    passages = await context.search(query, min(max(1, k), MAX_PASSAGES))
    return {"response": "\n\n".join(passages), "passages": passages}


@operator(name="Tool", calls=0, needs=("tools",))
async def call_tool(context: OperatorContext, tool: str, input: str) -> Called:
    """Calls a tool. `input` is a JSON object of its arguments, or the text for its first argument. Calls no model."""
    ok, result = await context.call_tool(tool, _arguments(input))
    if not ok:
        context.note(f"the tool {tool!r} failed: {result[:200]}")
    return {"result": result, "ok": ok}


def _arguments(text: str) -> dict[str, Any]:
    """The arguments `text` holds as JSON; other text under the empty name, which stands for the first argument."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {"": text}
    return found if isinstance(found, dict) else {"": text}
