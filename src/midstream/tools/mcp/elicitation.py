"""Answers to what an MCP server asks the user during a call. Nobody can be asked while an agent is trained."""

from __future__ import annotations

from typing import Any

from mcp_types import ElicitRequestFormParams, ElicitResult


async def accept_defaults(context: Any, params: Any) -> ElicitResult:
    """Accept a form with the defaults of its fields; decline one that requires a field without a default, and any
    request to visit an address."""
    if not isinstance(params, ElicitRequestFormParams):
        return ElicitResult(action="decline")
    fields = params.requested_schema.get("properties", {})
    content = {name: field["default"] for name, field in fields.items() if "default" in field}
    if not set(params.requested_schema.get("required", ())) <= set(content):
        return ElicitResult(action="decline")
    return ElicitResult(action="accept", content=content)
