"""`self.chat` with tools and answer formats: one renderer, one parser and one grammar with the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from tests.engines.formats.conftest import tokenizer_like
from tests.rollouts.conftest import ScriptedEngine

from midstream import AgentFlowBase, MultiStepAgentFlow, register
from midstream.agents.config import FlowConfig
from midstream.core.sampling import SamplingParams
from midstream.core.toolsets import ToolResult, ToolSpec
from midstream.core.types import Constraint, Status, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker
from midstream.rollouts.config import SamplingConfig

__all__ = ["tokenizer_like"]

TIMETABLE = ToolSpec(
    name="trains",
    description="Trains of a day.",
    parameters={
        "type": "object",
        "properties": {"to": {"type": "string"}, "day": {"enum": ["today", "tomorrow"]}},
        "required": ["to"],
    },
)
SEATS = {"type": "object", "properties": {"seats": {"type": "integer"}}, "required": ["seats"]}


def call_of(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Railway:
    """A toolset of plain JSON schemas."""

    async def open(self) -> None: ...

    async def list(self) -> Sequence[ToolSpec]:
        return [TIMETABLE]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult.of(f"IC 1 to {arguments['to']}")

    async def close(self) -> None: ...


@register("booking_for_chat")
class Booking(AgentFlowBase):
    """Looks up trains until it knows enough, then answers in JSON."""

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        await self.use_toolset(Railway())
        messages = [{"role": "user", "content": kwargs["task"]}]
        tools = self.session.tools.tools
        while True:
            reply = await self.chat(messages, tools=tools, response_format={"type": "json_object"})
            messages.append(reply.message)
            if not reply.tool_calls:
                self.answer = reply.content
                return len(self.steps)
            messages += await self.call_tools(reply)


@register("asks_for_chat")
class Asks(AgentFlowBase):
    """Makes one call with the arguments of the test, and keeps the reply."""

    arguments: dict[str, Any] = {}
    replies: list[Any] = []

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        self.replies.append(await self.chat([{"role": "user", "content": "?"}], **self.arguments))
        return 1


Run = Callable[..., tuple[Trajectory, list[Request]]]


@pytest.fixture
def run(tokenizer_like, attempt) -> Run:
    """Runs a flow on a model whose template has tools; `texts` are its replies. Returns the trajectory and
    the requests."""

    def run(name: str, *texts: str, **flow: Any) -> tuple[Trajectory, list[Request]]:
        tokenizer: ChatTokenizer = tokenizer_like("qwen2_5")
        left = iter(texts)
        engine = ScriptedEngine(tokenizer, lambda _: next(left))
        worker = AgentFlowWorker(
            FlowConfig(name=name, **flow),
            {"policy": RoleEngine(engine, tokenizer, True)},
            sampling=SamplingConfig(max_tokens=64),
        )
        return asyncio.run(worker.run(attempt())), engine.heard

    return run


def asked(run: Run, text: str, **arguments: Any) -> tuple[Any, Request]:
    Asks.arguments, Asks.replies = arguments, []
    made, (request,) = run("asks_for_chat", text)
    assert made.status is Status.COMPLETED, made.error
    return Asks.replies[0], request


def test_a_flow_uses_a_toolset_of_plain_schemas_by_native_calls(run: Run) -> None:
    texts = (call_of("trains", to="Oslo", day="today"), call_of("trains", to=7), '{"seats": 2}')
    made, requests = run("booking_for_chat", *texts)
    assert made.status is Status.COMPLETED, made.error
    assert made.answer == '{"seats": 2}'
    good, bad = made.tool_calls
    assert (good.ok, good.result, good.arguments, good.step_index) == (
        True,
        "IC 1 to Oslo",
        {"to": "Oslo", "day": "today"},
        0,
    )
    assert (bad.error_kind, bad.step_index) == ("invalid_arguments", 1)
    # The second prompt continues the first reply's tokens, and the template wrote declaration and result.
    first, second, _ = made.steps
    assert second.parent == 0 and second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    tokenizer_text = "".join(map(str, requests[1].messages))
    assert '"name": "trains"' in json.dumps(requests[1].tools) and "IC 1 to Oslo" in tokenizer_text
    assert [message["role"] for message in requests[1].messages] == ["user", "assistant", "tool"]


def test_tool_calls_are_data_and_nothing_runs(run: Run) -> None:
    declared = {"type": "function", "function": {"name": "pay", "parameters": SEATS}}
    reply, request = asked(run, f"Let me see.\n{call_of('pay', seats=3)}", tools=[declared, TIMETABLE])
    (call,) = reply.tool_calls
    assert (call.name, call.values, reply.content.strip()) == ("pay", {"seats": 3}, "Let me see.")
    assert reply.message["tool_calls"][0]["function"] == {"name": "pay", "arguments": call.arguments}
    assert [tool["function"]["name"] for tool in request.tools] == ["pay", "trains"]
    assert request.constraint is None and reply.text.endswith("</tool_call>")


def test_text_that_looks_like_a_call_is_text_without_tools(run: Run) -> None:
    reply, _ = asked(run, call_of("pay", seats=3))
    assert reply.tool_calls == () and reply.content == call_of("pay", seats=3)
    assert reply.message == {"role": "assistant", "content": reply.content}


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SEATS}}}, "json_schema"),
        ({"response_format": Constraint.one_of("yes", "no")}, "lark"),
        ({"tools": [TIMETABLE], "tool_choice": "required"}, "lark"),
        ({"tools": [TIMETABLE], "tool_choice": "trains"}, "lark"),
        ({"tools": [TIMETABLE], "tool_choice": "none"}, None),
        ({"response_format": {"type": "text"}}, None),
    ],
)
def test_the_constraint_reaches_the_engine(run: Run, arguments: dict[str, Any], kind: str | None) -> None:
    _, request = asked(run, "yes", **arguments)
    assert (None if request.constraint is None else request.constraint.kind) == kind


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tool_choice": "required"}, "no tools are declared"),
        ({"tools": [TIMETABLE], "tool_choice": "boats"}, "names 'boats', which is none of the tools"),
        ({"tools": [TIMETABLE], "response_format": Constraint.one_of("yes")}, "leaves no room for tool calls"),
        ({"response_format": {"type": "yaml"}}, "known are text, json_object and json_schema"),
    ],
)
def test_what_cannot_be_done_fails_the_trajectory_and_says_why(run: Run, arguments: Any, problem: str) -> None:
    Asks.arguments, Asks.replies = arguments, []
    made, requests = run("asks_for_chat")
    assert made.status is Status.FAILED and problem in made.error
    assert requests == []


def test_a_model_that_returns_text_only_refuses_tools_by_role(make_worker, by_role, attempt) -> None:
    Asks.arguments, Asks.replies = {"tools": [TIMETABLE], "role": "policy"}, []
    worker = make_worker(by_role(policy="x"), "asks_for_chat")
    worker._role_engines["policy"] = RoleEngine(worker._role_engines["policy"].engine, None, False)
    made = asyncio.run(worker.run(attempt()))
    assert made.status is Status.FAILED and "no tools and no response_format for 'policy'" in made.error


def test_the_loop_that_ships_calls_tools_natively_where_the_template_has_them(run: Run) -> None:
    made, requests = run(
        "multi_step_agent", call_of("calculator", expression="2 * 3"), "It is 6.", tools=("calculator",)
    )
    assert (made.answer, made.turns) == ("It is 6.", 2), made.error
    assert [(call.tool, call.result, call.step_index) for call in made.tool_calls] == [("calculator", "6", 0)]
    assert [tool["function"]["name"] for tool in requests[0].tools] == ["calculator"]
    endless, _ = run("multi_step_agent", *[call_of("calculator", expression="1")] * 9, tools=("calculator",))
    assert endless.turns == MultiStepAgentFlow.max_turns


@register("words_for_chat")
class Words(MultiStepAgentFlow):
    """Reads calls from the text itself."""

    def is_terminal(self, text: str) -> bool:
        return "CALL" not in text


def test_a_flow_that_reads_text_gets_text(run: Run) -> None:
    made, requests = run("words_for_chat", "calculator: 1 + 1 CALL", "done", tools=("calculator",))
    assert made.status is Status.COMPLETED, made.error
    assert requests[0].tools == () and "write its name, a colon" in str(requests[0].messages)
