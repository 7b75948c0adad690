"""Demonstrations show a plan as the flow at hand would carry it out, and teach only roles that are trained."""

from __future__ import annotations

import asyncio
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


@pytest.mark.parametrize("role", ["analysis", "executor"])
def test_roles_nobody_can_show_are_refused(context_of, role: str) -> None:
    with pytest.raises(ConfigError, match=rf"flow\.roles\.{role}\.engine=rules"):
        shown(context_of(roles={role: {"engine": "policy"}}))


def test_a_demonstration_that_calls_an_unknown_tool_is_refused(context_of) -> None:
    with pytest.raises(ConfigError, match=r"calls 'calculator', which is not in flow\.tools"):
        shown(context_of(tools=("search",)))


@pytest.mark.parametrize(("calls", "problem"), [("text", "not a list of tool calls"), ([{"tool": 3}], "not a list of")])
def test_a_demonstration_that_is_no_list_of_calls_is_refused(context_of, tmp_path, calls: Any, problem: str) -> None:
    import json

    rows = [{"question": f"{n}?", "answer": "1", "demonstration": calls, "split": "train"} for n in range(4)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=problem):
        shown(context_of(sources=(str(file),)))


@pytest.mark.parametrize("key", ["demonstration", "plan"])
def test_a_demonstration_that_fails_is_refused(context_of, tmp_path, caplog, key: str) -> None:
    import json

    agents_demonstrate._warn_of_old_key.cache_clear()  # it warns once per process
    calls = [{"tool": "calculator", "arguments": {"expression": "1 +"}}]
    rows = [{"question": f"{n}?", "answer": "1", key: calls, "split": "train"} for n in range(4)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="the demonstration of the task"):
        shown(context_of(sources=(str(file),)))
    assert ("metadata 'plan' is now called 'demonstration'" in caplog.text) == (key == "plan")
