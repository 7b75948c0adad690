"""Demonstrations show a plan as the flow at hand would carry it out, and teach only roles that are trained."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from midstream.agents import demonstrations as agents_demonstrate
from midstream.agents.agentflow.actions import read_action
from midstream.core.errors import ConfigError
from midstream.core.types import Trajectory
from midstream.learn.config import TrainConfig
from midstream.learn.run.setup import TrainingContext, build
from midstream.learn.run.warm_start import check_warm_start, demonstrate, lesson_batches
from midstream.tools import Toolbox, load_tools

RULES = {"analysis": {"engine": "rules"}, "executor": {"engine": "rules"}, "verifier": {"engine": "rules"}}


@pytest.fixture
def context_of(tiny_path):
    def make(
        settings: dict[str, Any] | None = None,
        roles: dict[str, Any] | None = None,
        tools: tuple[str, ...] = ("calculator", "search"),
        sources: tuple[str, ...] = ("facts_calculate",),
        wrong: float = 0.0,
    ) -> TrainingContext:
        return build(
            TrainConfig.model_validate(
                {
                    "policy": {"model": str(tiny_path)},
                    "tasks": {"sources": [{"type": source} for source in sources]},
                    "flow": {
                        "name": "agentflow",
                        "tools": tools,
                        "roles": {**RULES, **(roles or {})},
                        "settings": {"notation": "compact", "max_turns": 4, **(settings or {})},
                    },
                    "reward": {"components": {"correctness": 1.0}},
                    "warm_start": {"examples": 3, "wrong": wrong},
                }
            )
        )

    return make


def shown(context: TrainingContext) -> list[Trajectory]:
    check_warm_start(context)
    return asyncio.run(demonstrate(context))


def actions(trajectory: Trajectory, context: TrainingContext) -> list[tuple[str, str]]:
    toolbox = Toolbox(load_tools(context.config.flow.tools))
    notation = context.config.flow.settings["notation"]
    read = [read_action(step.text, notation, toolbox) for step in trajectory.steps if step.role == "planner"]
    return [(action.tool, str(next(iter(action.arguments.values()), ""))) for action in read]


@pytest.mark.parametrize("notation", ["compact", "json"])
@pytest.mark.parametrize("fields", [[], ["justification", "context", "sub_goal"]])
def test_the_plan_is_shown_to_its_end_and_answers_the_question(context_of, notation, fields) -> None:
    context = context_of({"notation": notation, "fields": fields})
    for trajectory in shown(context):
        tools = [tool for tool, _ in actions(trajectory, context)]
        assert tools == ["search", "calculator", "none"]
        assert context.reward.succeeded(trajectory), trajectory.answer


def test_a_verifier_that_speaks_says_when_the_plan_is_done(context_of) -> None:
    context = context_of(roles={"verifier": {"engine": "policy"}})
    for trajectory in shown(context):
        assert [tool for tool, _ in actions(trajectory, context)] == ["search", "calculator"]
        assert [step.text for step in trajectory.steps if step.role == "verifier"] == ["no", "yes"]
        assert context.reward.succeeded(trajectory)


def test_a_question_without_a_plan_needs_no_tool(context_of) -> None:
    context = context_of(sources=("direct",))
    for trajectory in shown(context):
        assert actions(trajectory, context) == [("none", "")]
        assert context.reward.succeeded(trajectory)


def test_a_spoiled_demonstration_begins_with_another_tool_and_goes_on_right(context_of) -> None:
    context = context_of(wrong=1.0)
    for trajectory in shown(context):
        tools = [tool for tool, _ in actions(trajectory, context)]
        assert tools[0] != "search" and tools[1:] == ["calculator", "none"]


def test_roles_that_are_not_trained_are_spoken_for_and_not_taught(context_of) -> None:
    context = context_of(roles={"generator": {"engine": "policy", "train": False}, "verifier": {"engine": "frozen"}})
    made = shown(context)
    assert {step.role: step.trainable for t in made for step in t.steps} == {
        "planner": True,
        "generator": False,
        "verifier": False,
    }
    taught = [
        s.prompt_ids + s.response_ids for part in lesson_batches(made, context.config.warm_start, 0) for s in part
    ]
    spoken = [s.prompt_ids + s.response_ids for t in made for s in t.steps if s.role == "planner"]
    assert sorted(taught) == sorted(spoken * context.config.warm_start.epochs)


def test_a_role_nobody_can_show_is_refused(context_of) -> None:
    with pytest.raises(ConfigError, match=r"flow\.roles\.analysis\.engine=rules"):
        shown(context_of(roles={"analysis": {"engine": "policy"}}))


def test_executor_and_verifier_are_shown_too(context_of) -> None:
    roles = {"executor": {"engine": "policy"}, "verifier": {"engine": "policy"}}
    context = context_of({"notation": "json", "fields": ["sub_goal"], "constrained": True}, roles)
    for trajectory in shown(context):
        said = [(step.role, step.text) for step in trajectory.steps]
        assert [role for role, _ in said] == [*["planner", "executor", "verifier"] * 2, "generator"]
        assert json.loads(said[0][1]).keys() == {"sub_goal", "tool"}
        assert json.loads(said[1][1]) == trajectory.tool_calls[0].arguments
        assert [text for role, text in said if role == "verifier"] == ["no", "yes"]
        assert context.reward.succeeded(trajectory), trajectory.answer


def test_a_demonstration_that_calls_an_unknown_tool_is_refused(context_of) -> None:
    with pytest.raises(ConfigError, match=r"calls 'calculator', which is not in flow\.tools"):
        shown(context_of(tools=("search",)))


@pytest.mark.parametrize(("calls", "problem"), [("text", "not a list of tool calls"), ([{"tool": 3}], "not a list of")])
def test_a_demonstration_that_is_no_list_of_calls_is_refused(context_of, tmp_path, calls: Any, problem: str) -> None:
    rows = [{"question": f"{n}?", "answer": "1", "demonstration": calls, "split": "train"} for n in range(4)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=problem):
        shown(context_of(sources=(str(file),)))


@pytest.mark.parametrize("key", ["demonstration", "plan"])
def test_a_demonstration_that_fails_is_refused(context_of, tmp_path, caplog, key: str) -> None:
    agents_demonstrate._warn_of_old_key.cache_clear()  # it warns once per process
    calls = [{"tool": "calculator", "arguments": {"expression": "1 +"}}]
    rows = [{"question": f"{n}?", "answer": "1", key: calls, "split": "train"} for n in range(4)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="the demonstration of the task"):
        shown(context_of(sources=(str(file),)))
    assert ("metadata 'plan' is now called 'demonstration'" in caplog.text) == (key == "plan")


@pytest.fixture
def react_context(tiny_path):
    def make(settings: dict[str, Any] | None = None, wrong: float = 0.0, **flow: Any) -> TrainingContext:
        return build(
            TrainConfig.model_validate(
                {
                    "policy": {"model": str(tiny_path)},
                    "tasks": {"sources": [{"type": "shop_bills"}]},
                    "flow": {
                        "name": "react",
                        "tools": ("python", "search", "memory_retrieve"),
                        "tool_settings": {
                            "python": {"state": False, "sandbox": {"backend": "interpreter"}},
                            "search": {"documents": "midstream.tasks.shop:prices"},
                            "memory_retrieve": {"records": "midstream.tasks.shop:orders", "namespace": "shop", "k": 1},
                        },
                        "settings": {} if flow else {"max_actions": 5, **(settings or {})},
                        **flow,
                    },
                    "reward": {"components": {"correctness": 1.0}},
                    "warm_start": {"examples": 3, "wrong": wrong},
                }
            )
        )

    return make


def taken(trajectory: Trajectory) -> list[str]:
    return [step.metadata["action"]["action"] for step in trajectory.steps]


def test_react_shows_each_call_as_its_typed_action(react_context) -> None:
    context = react_context({"constrained": True})
    for trajectory in shown(context):
        assert taken(trajectory) == ["memory_retrieve", "search", "call_api", "answer"]
        assert context.reward.succeeded(trajectory), trajectory.answer
        assert all(step.trainable for step in trajectory.steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"self_critique": True},
        {"context_tokens": 512},
        {"memory": {"tokens": 256}},
        {"actions": ["call_api", "answer"]},
    ],
)
def test_react_shows_the_same_under_any_setting(react_context, settings: dict[str, Any]) -> None:
    context = react_context({"max_actions": 6, **settings})
    for trajectory in shown(context):
        assert context.reward.succeeded(trajectory), trajectory.answer
        assert [call.tool for call in trajectory.tool_calls] == ["memory_retrieve", "search", "python"]


def test_a_spoiled_demonstration_of_react_begins_with_another_tool(react_context) -> None:
    for trajectory in shown(react_context(wrong=1.0)):
        first = trajectory.steps[0].metadata["action"]
        assert first.get("tool", first["action"]) in ("python", "search")
        assert taken(trajectory)[1:] == ["search", "call_api", "answer"]


def test_a_call_that_no_action_can_make_is_refused(react_context) -> None:
    with pytest.raises(ConfigError, match="calls 'python', which no action"):
        shown(react_context({"actions": ["search", "memory_retrieve", "answer"]}))


def test_a_demonstration_that_does_not_end_is_refused(react_context) -> None:
    with pytest.raises(ConfigError, match="the demonstration of the task"):
        shown(react_context({"max_actions": 3}))


def test_a_flow_without_demonstrations_is_refused(react_context) -> None:
    with pytest.raises(ConfigError, match="'single_step_single_turn_agent' has none"):
        shown(react_context(name="single_step_single_turn_agent"))
