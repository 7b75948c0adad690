"""A `dspy` program: the model chooses a tool's arguments, sees its result and judges it, the last part streamed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, create_model

pytestmark = pytest.mark.sdk
dspy = pytest.importorskip("dspy")

Number = Annotated[int, Field(ge=0, le=99)]


class Factors(BaseModel):
    a: Number
    b: Number


def calculator(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def held(lm: Any, **fields: Any) -> Any:
    """`lm`, held to JSON of these fields: dspy itself asks for that only where it knows the model."""
    required: dict[str, Any] = {name: (kind, ...) for name, kind in fields.items()}
    schema = create_model("Output", **required).model_json_schema()
    return lm.copy(response_format={"type": "json_schema", "json_schema": {"name": "output", "schema": schema}})


def agent(door: Any, question: str) -> int:
    lm = dspy.LM(
        f"openai/{door.model}", api_base=door.url, api_key=door.token, cache=False, max_tokens=60, num_retries=0
    )
    choose = dspy.Predict(dspy.Signature("question: str -> factors: Factors", custom_types={"Factors": Factors}))
    tool = dspy.Tool(calculator)
    with dspy.context(lm=held(lm, factors=Factors), adapter=dspy.JSONAdapter()):
        factors = choose(question=question).factors
    result = tool(a=factors.a, b=factors.b)
    with dspy.context(lm=held(lm, right=bool), adapter=dspy.JSONAdapter()):
        right = asyncio.run(judged(question, result))
    return result if right else 0


async def judged(question: str, result: int) -> bool:
    judge = dspy.streamify(dspy.Predict("question, result: int -> right: bool"))
    *_, last = [piece async for piece in judge(question=question, result=result)]
    return last.right


def test_a_program_with_a_tool_is_recorded_exactly_and_trained(trained: Any) -> None:
    for trajectory in trained(agent):
        chosen, judgement = trajectory.steps
        assert '"factors"' in chosen.text and '"right"' in judgement.text
