"""A `dspy` program with ReAct: thinks, calls a tool, reads its result and answers, streamed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, create_model

pytestmark = pytest.mark.sdk
dspy = pytest.importorskip("dspy")

ROUNDS = 2
Words = Annotated[str, Field(max_length=40)]
Number = Annotated[int, Field(ge=0, le=99)]


class Factors(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: Number
    b: Number


def calculator(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def held(lm: Any, **fields: Any) -> Any:
    """`lm` constrained to JSON with these fields: dspy itself requests that only for models it knows."""
    required: dict[str, Any] = {name: (kind, ...) for name, kind in fields.items()}
    model = create_model("Output", __config__=ConfigDict(extra="forbid"), **required)
    wanted = {"name": "output", "schema": model.model_json_schema()}
    return lm.copy(response_format={"type": "json_schema", "json_schema": wanted})


def agent(endpoint: Any, question: str) -> int:
    lm = dspy.LM(
        f"openai/{endpoint.model}",
        api_base=endpoint.url,
        api_key=endpoint.token,
        cache=False,
        max_tokens=200,
        num_retries=0,
    )
    program = dspy.ReAct("question -> answer: int", tools=[calculator], max_iters=ROUNDS)
    called = Literal["calculator"]
    program.react.set_lm(held(lm, next_thought=Words, next_tool_name=called, next_tool_args=Factors))
    program.extract.set_lm(held(lm, reasoning=Words, answer=Number))
    with dspy.context(adapter=dspy.JSONAdapter()):
        return asyncio.run(answered(program, question))


async def answered(program: Any, question: str) -> int:
    words = dspy.streaming.StreamListener(signature_field_name="reasoning")
    *said, last = [piece async for piece in dspy.streamify(program, stream_listeners=[words])(question=question)]
    assert all(f"observation_{number}" in last.trajectory for number in range(ROUNDS)), last.trajectory
    assert said, "what the model said came in pieces"
    return last.answer


def test_a_program_with_a_tool_is_recorded_exactly_and_trained(trained: Any) -> None:
    for trajectory in trained(agent):
        *called, answered = trajectory.steps
        assert ['"next_tool_name": "calculator"' in step.text for step in called] == [True] * ROUNDS
        assert '"answer"' in answered.text
