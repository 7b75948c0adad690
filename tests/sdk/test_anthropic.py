"""A custom agent with the `anthropic` package: calls a tool, streams, and has a second conversation."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.sdk
anthropic = pytest.importorskip("anthropic")

LOOKUP: Any = {
    "name": "lookup",
    "description": "Look a number up.",
    "input_schema": {
        "type": "object",
        "properties": {"table": {"enum": ["sums", "products"]}, "row": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["table", "row"],
        "additionalProperties": False,
    },
}


def agent(endpoint: Any, question: str) -> str:
    client = anthropic.Anthropic(base_url=endpoint.root, api_key=endpoint.token)
    messages: list[Any] = [{"role": "user", "content": question}]
    asked: Any = {"model": endpoint.model, "max_tokens": 80, "tools": [LOOKUP]}
    reply = client.messages.create(**asked, messages=messages, tool_choice={"type": "any"})
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"{block.input['row']}2"}
        for block in reply.content
        if block.type == "tool_use"
    ]
    messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]
    with client.messages.stream(**{**asked, "max_tokens": 30}, messages=messages) as stream:
        said = "".join(stream.text_stream)
    # A separate critic in the same trajectory.
    critic = client.messages.create(
        model=endpoint.model, max_tokens=10, system="You judge.", messages=[{"role": "user", "content": said or "-"}]
    )
    return critic.content[0].text


def test_an_agent_on_anthropics_client_is_recorded_exactly_and_trained(trained: Any) -> None:
    for trajectory in trained(agent):
        called, answered, judged = trajectory.steps
        assert "lookup" in called.text
        assert (answered.parent, answered.branch_reason) == (0, "")
        assert judged.parent is None
