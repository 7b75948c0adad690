"""A small model of random weights under the schemas of `agentflow`: what it writes can be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from midstream.agents.agentflow.actions import action_schema, read_action
from midstream.agents.agentflow.flow import AgentFlow
from midstream.agents.config import FlowConfig, RoleConfig
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.core.types import Task, Trajectory
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.tools import Toolbox, load_tools

TOOLS = ("calculator", "echo", "multiply")


@pytest.fixture
def attempts(make_policy: Callable[..., Any]) -> Callable[..., list[Trajectory]]:
    def run(name: str, settings: dict[str, Any], **roles: RoleConfig) -> list[Trajectory]:
        worker = AgentFlowWorker(
            FlowConfig(name=name, tools=TOOLS, settings=settings, roles=roles),
            {"policy": make_policy("float32", rank=4).role_engine},
            sampling=SamplingConfig(max_tokens=48),
        )

        async def some() -> list[Trajectory]:
            task = Task(id="t", prompt="What is 15 + 27?", answer="42")
            return [await worker.run(Attempt(task=task, uid=f"u{n}", prompt_uid="p", seed=n)) for n in range(2)]

        return asyncio.run(some())

    return run


def test_planner_executor_and_verifier_of_an_untrained_model_are_understood(attempts) -> None:
    made = attempts(
        "agentflow", {"constrained": True, "fields": [], "max_turns": 2}, analysis=RoleConfig(engine="rules")
    )
    assert not any(trajectory.error for trajectory in made)
    steps = [step for trajectory in made for step in trajectory.steps]
    for step in steps:
        if step.role == "planner":
            assert step.metadata["parsed"] and json.loads(step.text).keys() == {"tool"}
        elif step.role == "verifier":
            assert step.text in ("yes", "no")
        elif step.role == "executor" and step.finish_reason == "stop":
            assert isinstance(json.loads(step.text), dict)
    assert {step.role for step in steps} >= {"planner", "verifier", "generator"}
    assert all((step.constraint is None) == (step.role == "generator") for step in steps)


def test_every_action_of_the_schema_can_be_read_and_nothing_else_is_in_it() -> None:
    tools = load_tools(TOOLS)
    box = Toolbox(tools)
    valid = Draft202012Validator(action_schema(tools, ["sub_goal"], arguments=True)).is_valid
    call = {"sub_goal": "six", "tool": "multiply", "arguments": {"a": 2, "b": 3}}
    assert valid(call) and read_action(json.dumps(call), "json", box, ("sub_goal",)).arguments == {"a": 2, "b": 3}
    assert valid({"sub_goal": "answer", "tool": "none"})
    for wrong in (
        {**call, "sub_goal": ""},
        {**call, "tool": "search"},
        {**call, "arguments": {"a": 2}},
        {"tool": "multiply", "arguments": {"a": 2, "b": 3}},
    ):
        assert not valid(wrong)
    assert not Draft202012Validator(action_schema(tools, [], arguments=False)).is_valid(
        {"tool": "echo", "arguments": {}}
    )


def test_constraints_need_the_notation_that_has_a_schema() -> None:
    with pytest.raises(ConfigError, match="constrained needs notation: json"):
        parse_config(AgentFlow.settings, {"constrained": True, "notation": "compact"}, "flow.settings")
