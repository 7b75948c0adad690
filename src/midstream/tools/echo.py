"""`echo`: returns its input, for trying out a flow and for tests."""

from __future__ import annotations

from midstream.tools.declare import tool


@tool(idempotent=True, returns="text", examples=[{"text": "hello"}])
def echo(text: str) -> str:
    """Give the text back unchanged."""
    return text
