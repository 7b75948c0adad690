"""An agent of one's own, with the `openai` package: tools on demand, parallel calls, the answer streamed."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.sdk
openai = pytest.importorskip("openai")

CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "maxLength": 16}},
            "required": ["expression"],
        },
    },
}


def agent(door: Any, question: str) -> str:
    client = openai.OpenAI(base_url=door.url, api_key=door.token)
    messages: list[Any] = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(
        model=door.model, messages=messages, tools=[CALCULATOR], tool_choice="required", max_tokens=80
    )
    message = reply.choices[0].message
    messages.append(message)
    for call in message.tool_calls or ():
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "42"})
    with client.chat.completions.stream(model=door.model, messages=messages, tools=[CALCULATOR]) as stream:
        return stream.get_final_completion().choices[0].message.content or ""


def test_an_agent_on_openais_client_is_recorded_exactly_and_trained(trained: Any) -> None:
    for trajectory in trained(agent):
        called, answered = trajectory.steps
        assert "calculator" in called.text
        assert (answered.parent, answered.branch_reason) == (0, "")
