"""The conversation of every measurement: the same messages and replies for each server."""

from __future__ import annotations

import json
from typing import Any

SYSTEM = (
    "You are a careful assistant of a small shop that sells parts for bicycles. Answer in a few sentences, name the "
    "part and its price, and say what the customer should check before ordering. If something cannot be known from "
    "what the customer wrote, ask for it."
)
QUESTIONS = (
    "My chain slips when I ride uphill. The bicycle has a cassette with nine sprockets and is four years old.",
    "I measured it as you said, and it is worn beyond the mark. Do I need anything else, and what will it cost?",
    "Can I do this myself? I have a set of hexagon keys and a spanner, and nothing made for bicycles.",
    "Then please add the tool. How long will it take to reach me, and what if it does not fit?",
)
REPLY = (
    "A chain that slips under load is usually worn. The nine-speed chain is 18.90 and the cassette 32.50; they should "
    "be changed together, because new links climb on old sprockets. Before you order, please check how many teeth the "
    "largest sprocket has."
)
MODEL = "scripted"


def messages(turn: int) -> list[dict[str, Any]]:
    """The conversation as an agent sends it at `turn`, counted from 0."""
    said: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for place in range(turn + 1):
        said.append({"role": "user", "content": QUESTIONS[place % len(QUESTIONS)]})
        if place < turn:
            said.append({"role": "assistant", "content": REPLY})
    return said


def body(turn: int, *, model: str = MODEL, stream: bool = False) -> bytes:
    """The request that an OpenAI client makes at `turn`."""
    request = {"model": model, "messages": messages(turn), "max_tokens": 256, "temperature": 1.0}
    return json.dumps(request | ({"stream": True} if stream else {})).encode()
