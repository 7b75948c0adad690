"""Agents of the `openai-agents` package: one hands over to another, over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.sdk
agents = pytest.importorskip("agents")


def team(door: Any, api: str) -> Any:
    """Whom to ask first: somebody who hands over to a mathematician, who uses a calculator."""
    agents.set_tracing_disabled(True)
    client = agents.AsyncOpenAI(base_url=door.url, api_key=door.token)
    kinds = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}
    model = kinds[api](model=door.model, openai_client=client)

    @agents.function_tool
    def calculator(expression: str) -> str:
        """Compute an expression."""
        return "42"

    mathematician = agents.Agent(
        name="mathematician",
        instructions="You use the calculator.",
        model=model,
        tools=[calculator],
        model_settings=agents.ModelSettings(tool_choice="required", max_tokens=60),
    )
    return agents.Agent(
        name="front desk",
        instructions="You hand over to the mathematician.",
        model=model,
        handoffs=[mathematician],
        model_settings=agents.ModelSettings(tool_choice="transfer_to_mathematician", max_tokens=60),
    )


def ask(door: Any, question: str) -> str:
    async def go() -> str:
        run = agents.Runner.run_streamed(team(door, "chat"), question, max_turns=6)
        async for _ in run.stream_events():
            pass
        return str(run.final_output)

    return asyncio.run(go())


def ask_by_responses(door: Any, question: str) -> str:
    return str(asyncio.run(agents.Runner.run(team(door, "responses"), question, max_turns=6)).final_output)


@pytest.mark.parametrize("agent", [ask, ask_by_responses])
def test_a_handover_and_its_tools_are_recorded_exactly_and_trained(trained: Any, agent: Any) -> None:
    for trajectory in trained(agent):
        handed, called, *answered = trajectory.steps
        assert "transfer_to_mathematician" in handed.text and "calculator" in called.text
        # Who takes over has other instructions and tools, so a prompt of its own; then it goes on from its own tokens.
        assert called.parent is None and called.branch_reason
        assert [step.parent for step in answered] == [1 + place for place in range(len(answered))]
