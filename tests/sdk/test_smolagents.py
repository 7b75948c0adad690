"""A tool-calling agent of the `smolagents` package, its steps streamed."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.sdk
smolagents = pytest.importorskip("smolagents")


def agent(endpoint: Any, question: str) -> str:
    used: list[tuple[int, int]] = []

    @smolagents.tool
    def calculator(a: int, b: int) -> int:
        """Multiply two numbers.

        Args:
            a: the first
            b: the second
        """
        used.append((a, b))
        return a * b

    @smolagents.tool
    def final_answer(answer: int) -> int:
        """Provides a final answer to the given problem.

        Args:
            answer: the number that was asked for
        """
        return answer

    def was_calculated(answer: object, memory: object, agent: object) -> bool:
        """Reject an answer that the model did not calculate, so that it continues."""
        return bool(used)

    model = smolagents.OpenAIModel(
        model_id=endpoint.model, api_base=endpoint.url, api_key=endpoint.token, max_tokens=120
    )
    runner = smolagents.ToolCallingAgent(
        tools=[calculator, final_answer],
        model=model,
        max_steps=2,
        stream_outputs=True,
        verbosity_level=0,
        final_answer_checks=[was_calculated],
    )
    return str(runner.run(question))


def test_a_tool_calling_agent_is_recorded_exactly_and_trained(trained: Any) -> None:
    trajectories = trained(agent)
    for trajectory in trajectories:
        called, *later = trajectory.steps
        assert "<tool_call>" in called.text
        # smolagents writes calls into the history in words of its own: no later prompt can go on from their tokens. A
        # call that was cut off is text.
        for step in later:
            assert step.branch_reason or "</tool_call>" not in trajectory.steps[step.parent].text
    assert any("calculator" in step.text for trajectory in trajectories for step in trajectory.steps)
