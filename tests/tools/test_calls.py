"""Tool calls as data, native calls, and the schema that constrained sampling uses."""

import asyncio
import json

import pytest
from jsonschema import validate
from jsonschema.exceptions import ValidationError
from pydantic import BaseModel

from midstream.tools import Toolbox, load_tools, tool
from midstream.tools.calls import UnreadableCall, call_schema, native_calls, read_call


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ('{"tool": "calc", "args": {"a": 2, "b": 3}}', "calc", {"a": 2, "b": 3}),
        ('I will look it up. {"tool": "search", "args": {"q": "{x}"}} Done.', "search", {"q": "{x}"}),
        ('{"note": 1} {"tool": "echo"}', "echo", {}),
        ('{"tool": "echo", "arguments": {"text": "a"}}', "echo", {"text": "a"}),
        ('{{"tool": "echo", "args": [1]}', "echo", [1]),
    ],
)
def test_a_call_is_found_in_text(text, name, args):
    call = read_call(text)
    assert (call.tool, call.args) == (name, args)


@pytest.mark.parametrize("text", ["", "42", "{", '{"tool": 3}', '{"args": {}}', "{" * 100_000])
def test_text_without_a_call_says_what_to_write(text):
    with pytest.raises(UnreadableCall, match="write one JSON object"):
        read_call(text)


def test_native_calls_are_read_from_a_message():
    function = {"name": "multiply", "arguments": '{"a": 2, "b": 4}'}
    broken = {"name": "multiply", "arguments": "{a: 2"}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": one} for one in (function, broken)],
    }
    session = Toolbox(load_tools(["multiply"])).session()
    done = [asyncio.run(session.call(call.tool, call.args)) for call in native_calls(message)]
    assert done[0].result == "8"
    assert done[1].error_kind == "invalid_arguments"
    assert session.schemas()[0]["function"]["parameters"]["required"] == ["a", "b"]


def test_the_schema_allows_exactly_the_calls_of_the_tools():
    class Point(BaseModel):
        x: int
        y: int

    @tool
    def draw(at: Point) -> str:
        """Draw."""
        return f"{at.x},{at.y}"

    tools = [draw, *load_tools(["echo"])]
    schema = call_schema(tools)
    validate({"tool": "draw", "args": {"at": {"x": 1, "y": 2}}}, schema)
    validate({"tool": "echo", "args": {"text": "a"}}, schema)
    for wrong in (
        {"tool": "other", "args": {}},
        {"tool": "draw", "args": {"at": {"x": "1", "y": 2}}},
        {"tool": "echo"},
    ):
        with pytest.raises(ValidationError):
            validate(wrong, schema)


def test_a_small_models_calls_are_valid_under_the_schema(make_policy):
    from midstream.core.sampling import SamplingParams
    from midstream.engines.base import Constraint
    from midstream.record.recorder import Call, Recorder

    tools = load_tools(["multiply"])
    constraint = Constraint(kind="json_schema", grammar=json.dumps(call_schema(tools)))
    policy = make_policy(rank=0, sharp=False)

    async def sample(seed):
        recorder = Recorder("t", "p", seed=seed)
        ask = ({"role": "user", "content": "6 times 7"},)
        call = Call(messages=ask, sampling=SamplingParams(max_tokens=200), constraint=constraint)
        step, _ = await recorder.call(policy.role_engine, call)
        return step

    steps = [step for step in (asyncio.run(sample(seed)) for seed in range(3)) if step.finish_reason == "stop"]
    for step in steps:
        assert Toolbox(tools).session().validate(read_call(step.text).tool, read_call(step.text).args) == []
    assert steps
