"""A `dspy` program: an agent with a tool (ReAct), and a streamed prediction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.sdk
dspy = pytest.importorskip("dspy")


def calculator(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def agent(door: Any, question: str) -> str:
    lm = dspy.LM(
        f"openai/{door.model}", api_base=door.url, api_key=door.token, cache=False, max_tokens=150, num_retries=0
    )
    # JSONAdapter asks for a JSON schema, which the gateway holds the model to.
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        try:
            answer = dspy.ReAct("question -> answer: int", tools=[calculator], max_iters=2)(question=question).answer
        except Exception as error:
            answer = type(error).__name__
        return f"{answer} {asyncio.run(streamed(question))}"


async def streamed(question: str) -> int:
    predict = dspy.streamify(dspy.Predict("question -> remark: bool"))
    pieces = 0
    try:
        async for _ in predict(question=question):
            pieces += 1
    except Exception:
        pass
    return pieces


def test_a_program_with_a_tool_is_recorded_exactly_and_trained(trained: Any) -> None:
    trained(agent)
