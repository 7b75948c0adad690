"""Agents of the `pydantic-ai` package: one asks another through a tool, on OpenAI's and on Anthropic's API."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

pytestmark = pytest.mark.sdk
pydantic_ai = pytest.importorskip("pydantic_ai")


class Answer(BaseModel):
    """The final answer. Where arguments of its own invention are allowed, the model may not come to an end."""

    model_config = ConfigDict(extra="forbid")
    number: Annotated[int, Field(ge=0, le=999)]


def by_chat(endpoint: Any) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(endpoint.model, provider=OpenAIProvider(base_url=endpoint.url, api_key=endpoint.token))


def by_responses(endpoint: Any) -> Any:
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIResponsesModel(endpoint.model, provider=OpenAIProvider(base_url=endpoint.url, api_key=endpoint.token))


def by_messages(endpoint: Any) -> Any:
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(base_url=endpoint.root, api_key=endpoint.token)
    return AnthropicModel(endpoint.model, provider=AnthropicProvider(anthropic_client=client))


def asked(model: Any) -> Any:
    """An agent that asks a helper, and then answers by a tool call. Given both tools at once, a model as small as this
    one answers without asking, or asks without end."""
    from pydantic_ai.capabilities import PrepareOutputTools

    topics: list[str] = []

    def until_asked(context: Any, tool: Any) -> Any:
        return None if topics else tool

    def once_asked(context: Any, tools: list[Any]) -> list[Any]:
        return tools if topics else []

    helper = pydantic_ai.Agent(model, instructions="You help.", model_settings={"max_tokens": 8})
    agent = pydantic_ai.Agent(
        model,
        output_type=Answer,
        instructions="You are good with numbers.",
        model_settings={"max_tokens": 200, "parallel_tool_calls": False},
        retries=3,
        capabilities=[PrepareOutputTools(once_asked)],
    )

    @agent.tool_plain(prepare=until_asked)
    async def ask_helper(topic: Annotated[str, Field(max_length=12)]) -> str:
        """Ask another agent."""
        topics.append(topic)
        return (await helper.run(topic)).output

    return agent


@pytest.mark.parametrize("model", [by_chat, by_responses, by_messages])
def test_an_agent_and_its_helper_are_recorded_exactly_and_trained(trained: Any, model: Any) -> None:
    def agent(endpoint: Any, question: str) -> int:
        async def go() -> int:
            asking = asked(model(endpoint))
            first = await asking.run(question)
            async with asking.run_stream("Once more.", message_history=first.all_messages()) as stream:
                return (await stream.get_output()).number

        return asyncio.run(go())

    for trajectory in trained(agent):
        asking, *rest = trajectory.steps
        helping, answered = ([step for step in rest if bool(step.tools) == tools] for tools in (False, True))
        assert "ask_helper" in asking.text and all("final_result" in step.text for step in answered)
        assert helping and all(step.parent is None for step in helping)
        # The answer is another tool; from then on each prompt extends the previous tokens.
        assert answered[0].branch_reason == "changed_tools" and len(answered) >= 2
        assert [rest[step.parent - 1] for step in answered[1:] if step.parent] == answered[:-1]
