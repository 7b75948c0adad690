"""Agents of the `openai-agents` package: one hands over to another, over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

pytestmark = pytest.mark.sdk
agents = pytest.importorskip("agents")


class Answer(BaseModel):
    number: Annotated[int, Field(ge=0, le=999)]


@pytest.fixture
def team() -> Any:
    """A first agent that hands over to a mathematician, who uses a calculator and answers in JSON.

    The calculator can be used twice. A model as small as this one, free to call or to answer, repeats the call it sees
    before it without end."""
    agents.set_tracing_disabled(True)

    def make(endpoint: Any, model_class: Any) -> Any:
        used: list[tuple[int, int]] = []

        @agents.function_tool(is_enabled=lambda context, agent: len(used) < 2)
        def calculator(a: Annotated[int, Field(ge=0, le=99)], b: Annotated[int, Field(ge=0, le=99)]) -> str:
            """Multiply two numbers."""
            used.append((a, b))
            return str(a * b)

        model = model_class(
            model=endpoint.model, openai_client=agents.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.token)
        )
        mathematician = agents.Agent(
            name="mathematician",
            instructions="You use the calculator.",
            model=model,
            tools=[calculator],
            output_type=Answer,
            model_settings=agents.ModelSettings(tool_choice="required", max_tokens=120, parallel_tool_calls=False),
        )
        return agents.Agent(
            name="front desk",
            instructions="You hand over to the mathematician.",
            model=model,
            handoffs=[mathematician],
            model_settings=agents.ModelSettings(tool_choice="transfer_to_mathematician", max_tokens=120),
        )

    return make


def check(trajectories: Any) -> None:
    for trajectory in trajectories:
        handed, called, again, *rest = trajectory.steps
        assert "transfer_to_mathematician" in handed.text and "calculator" in called.text
        # The second agent has other instructions and tools, so its own prompt; its later calls extend its own tokens.
        assert called.parent is None and called.branch_reason
        assert (again.parent, again.branch_reason) == (1, "")
        assert [step.branch_reason for step in rest] == ["changed_tools"] * ("calculator" in again.text)
        assert '"number"' in trajectory.steps[-1].text


def test_a_handover_that_streams_is_recorded_exactly_and_trained(trained: Any, team: Any) -> None:
    def agent(endpoint: Any, question: str) -> Any:
        async def go() -> Any:
            run = agents.Runner.run_streamed(team(endpoint, agents.OpenAIChatCompletionsModel), question, max_turns=5)
            async for _ in run.stream_events():
                pass
            return run.final_output.number

        return asyncio.run(go())

    check(trained(agent))


def test_a_handover_by_responses_is_recorded_exactly_and_trained(trained: Any, team: Any) -> None:
    def agent(endpoint: Any, question: str) -> Any:
        run = agents.Runner.run(team(endpoint, agents.OpenAIResponsesModel), question, max_turns=5)
        return asyncio.run(run).final_output.number

    check(trained(agent))
