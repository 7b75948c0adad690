"""A flow with a toolset defined by JSON schemas alone, opened and closed with the trajectory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import register
from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.core.failures import Failure, failure_of
from midstream.core.sampling import SamplingParams
from midstream.core.toolsets import ToolContent, ToolResult, ToolSpec
from midstream.core.types import Status, Trajectory

SPECS = (
    ToolSpec(
        name="book",
        description="Book seats on a train.",
        parameters={
            "type": "object",
            "properties": {
                "train": {"type": "string"},
                "seats": {"type": "integer", "minimum": 1},
                "class": {"enum": ["first", "second"], "default": "second"},
            },
            "required": ["train", "seats"],
            "additionalProperties": False,
        },
    ),
    ToolSpec(name="ticket"),
    ToolSpec(name="outage"),
    ToolSpec(name="strike"),
    ToolSpec(name="delayed", timeout_s=0.05),
    ToolSpec(name="elsewhere", parameters={"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/a"}}}),
)


class Railway:
    """A toolset with a lifetime: it books only while it is open."""

    def __init__(self, specs: Sequence[ToolSpec] = SPECS) -> None:
        self.specs, self.events = specs, list[str]()

    async def open(self) -> None:
        self.events.append("open")

    async def list(self) -> Sequence[ToolSpec]:
        return self.specs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        self.events.append(name)
        if name == "strike":
            return ToolResult((ToolContent(kind="text", text="no trains today"),), is_error=True)
        if name == "ticket":
            text = ToolContent(kind="text", text="your ticket", source="office")
            return ToolResult((text, ToolContent(kind="image", text="[a bar code]", content=b"\x89PNG")))
        if name == "outage":
            raise ToolUnavailable("the timetable is down")
        if name == "delayed":
            await asyncio.sleep(60)
        return ToolResult.of({"booked": dict(arguments)})

    async def close(self) -> None:
        self.events.append("close")


@pytest.fixture
def traveller(make_worker, by_role, attempt):
    """Run a flow that makes `calls`; return its trajectory."""

    def run(toolset: Railway, *calls: tuple[str, Any], **flow: Any) -> Trajectory:
        @register("traveller_for_toolsets")
        class Traveller(AgentFlowBase):
            async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
                await self.use_toolset(toolset)
                self.answer = self.session.tools.cards()
                for name, arguments in calls:
                    await self.call_tool(name, arguments)
                return len(self.steps)

        worker = make_worker(by_role(policy="fine"), "traveller_for_toolsets", tools=("echo",), **flow)
        return asyncio.run(worker.run(attempt()))

    return run


def test_a_flow_uses_tools_defined_by_schemas(traveller) -> None:
    railway = Railway()
    made = traveller(
        railway, ("book", {"train": "IC 1", "seats": "2"}), ("echo", {"text": "hi"}), ("ticket", {}), ("strike", {})
    )
    assert made.status is Status.COMPLETED, made.error
    assert 'book(train: string, seats: integer, class: any = "second") - Book seats on a train.' in made.answer
    assert [(call.ok, call.result) for call in made.tool_calls] == [
        (True, '{"booked": {"train": "IC 1", "seats": 2}}'),
        (True, "hi"),
        (True, "your ticket\n[a bar code]"),
        (False, "Error: no trains today"),
    ]
    assert railway.events == ["open", "book", "ticket", "strike", "close"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"train": "IC 1"}, "argument 'seats' is missing"),
        ({"train": 7, "seats": 1}, "argument 'train' must be a string, not the number 7"),
        ({"train": "IC 1", "seats": "two"}, "argument 'seats' must be a whole number, not the string 'two'"),
        ({"train": "IC 1", "seats": 0}, "argument 'seats': 0 is less than the minimum of 1"),
        ({"train": "IC 1", "seats": 1, "class": "third"}, "argument 'class' must be one of first, second"),
        ({"train": "IC 1", "seats": 1, "seat": 3}, "there is no argument 'seat'; did you mean 'seats'?"),
        ({"train": "IC 1", "seats": float("nan")}, "not valid JSON"),
        ([], "arguments must be an object"),
    ],
)
def test_an_invalid_call_is_refused_before_it_reaches_the_toolset(traveller, arguments, problem) -> None:
    railway = Railway()
    (call,) = traveller(railway, ("book", arguments)).tool_calls
    assert (call.ok, call.error_kind) == (False, "invalid_arguments")
    assert problem in call.result
    assert railway.events == ["open", "close"]


def test_time_limit_and_budget_apply_to_every_toolset(traveller) -> None:
    made = traveller(Railway(), ("delayed", {}), ("ticket", {}), max_tool_calls=1)
    assert [call.error_kind for call in made.tool_calls] == ["timeout", "over_budget"]


def test_an_outage_of_a_tool_fails_the_trajectory_as_infrastructure(traveller) -> None:
    made = traveller(Railway(), ("outage", {}), ("ticket", {}))
    assert (made.status, failure_of(made)) == (Status.FAILED, Failure.INFRASTRUCTURE)
    assert "the tool 'outage' is unavailable: the timetable is down" in made.error
    assert [call.error_kind for call in made.tool_calls] == ["unavailable"]
    goes_on = traveller(Railway(), ("outage", {}), ("ticket", {}), tool_use={"outage": "report"})
    assert goes_on.status is Status.COMPLETED
    assert [call.ok for call in goes_on.tool_calls] == [False, True]


def test_a_config_changes_the_policy_of_a_toolset(traveller) -> None:
    made = traveller(Railway(), ("strike", {}), tool_use={"policies": {"strike": {"fallback": ["ticket"]}}})
    assert [(call.ok, call.answered_by) for call in made.tool_calls] == [(True, "ticket")]


def test_schema_references_are_never_fetched(traveller) -> None:
    (call,) = traveller(Railway(), ("elsewhere", {"a": 1})).tool_calls
    assert "refers to http://127.0.0.1:9/a, which is not in it" in call.result


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (ToolSpec(name="echo"), "two tools are named 'echo'"),
        (ToolSpec(name="no way"), "'no way' cannot be the name of a tool"),
        (ToolSpec(name="list", parameters={"type": "array"}), "not a JSON schema of an object"),
        (ToolSpec(name="odd", parameters={"type": "object", "properties": 3}), "its JSON schema is invalid"),
    ],
)
def test_a_rejected_toolset_is_closed(traveller, spec: ToolSpec, problem: str) -> None:
    railway = Railway([spec])
    with pytest.raises(ConfigError, match=problem):
        traveller(railway)
    assert railway.events == ["open", "close"]
