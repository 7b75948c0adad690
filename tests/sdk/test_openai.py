"""A custom agent with the `openai` package: tools, parallel calls, streaming, a JSON answer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

pytestmark = pytest.mark.sdk
openai = pytest.importorskip("openai")

CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an expression.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "maxLength": 16}},
            "required": ["expression"],
            "additionalProperties": False,
        },
    },
}


class Answer(BaseModel):
    number: int = Field(ge=0, le=999)


def agent(endpoint: Any, question: str) -> int:
    client = openai.OpenAI(base_url=endpoint.url, api_key=endpoint.token)
    messages: list[Any] = [{"role": "user", "content": question}]
    asked: Any = {"model": endpoint.model, "tools": [CALCULATOR]}
    with client.chat.completions.stream(
        **asked, messages=messages, tool_choice="required", parallel_tool_calls=False, max_tokens=80
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "42"})
    guesses = client.chat.completions.create(**asked, messages=messages, n=2)
    messages.append({"role": "user", "content": f"You said: {guesses.choices[1].message.content}. The number, please."})
    final = client.chat.completions.parse(
        **{**asked, "tools": openai.omit}, messages=messages, response_format=Answer, max_tokens=40
    )
    return final.choices[0].message.parsed.number


def test_an_agent_on_openais_client_is_recorded_exactly_and_trained(trained: Any) -> None:
    for trajectory in trained(agent):
        called, one, other, answered = trajectory.steps
        assert "calculator" in called.text
        assert [(step.parent, step.branch_reason) for step in (one, other)] == [(0, "")] * 2
        assert answered.branch_reason == "changed_tools"
