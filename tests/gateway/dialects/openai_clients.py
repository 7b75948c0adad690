"""The `openai` package as a client of a gateway, with its types checked strictly."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "maxLength": 12}},
            "required": ["expression"],
            "additionalProperties": False,
        },
    },
}


def client_of(opened: dict[str, Any], **settings: Any) -> OpenAI:
    """OpenAI's client, which raises if an answer does not match its types."""
    return OpenAI(
        base_url=opened["base_url"],
        api_key=opened["token"],
        _strict_response_validation=True,
        **{"max_retries": 0, **settings},
    )


def user(text: str) -> Any:
    return {"role": "user", "content": text}
