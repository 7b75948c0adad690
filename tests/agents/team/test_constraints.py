"""Constrained teams: what the grammar of a role allows can be read, and nothing else is in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLTokenizer

from midstream.agents.config import FlowConfig
from midstream.agents.team.actions import UnreadableReply
from midstream.agents.team.constraints import Replies, edit_schema
from midstream.agents.team.edits import TeamTask, read_edit
from midstream.core.types import Constraint, Step, Task
from midstream.engines.grammar import check, compiled
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig

TOOLED = {"instructions": "You calculate.", "tools": ["calculator"], "max_calls": 1}


def new_task(id: str, *after: str, member: str = "writer") -> dict[str, Any]:
    return {"id": id, "member": member, "task": "Do it.", "after": after}


DONE = TeamTask("t1", "writer", "Do this.", (), 1, "succeeded", "it")
EDITS = [
    ({"add": [new_task("t2")]}, True),
    ({"add": [new_task("t2", "t1"), new_task("t3", "t1", "t2")]}, True),
    ({"answer_from": "t1"}, True),
    ({"answer": "It."}, True),
    ({"add": []}, False),
    ({"add": [new_task("t1")]}, False),
    ({"add": [new_task("t2", "t3")]}, False),
    ({"add": [new_task("t2", member="nobody")]}, False),
    ({"add": [new_task("t2"), new_task("t3"), new_task("t4")]}, False),
    ({"answer_from": "t2"}, False),
    ({"answer": "It.", "answer_from": "t1"}, False),
]


@pytest.mark.parametrize(("edit", "valid"), EDITS)
def test_the_schema_of_edits_holds_what_can_be_read(edit: dict[str, Any], valid: bool) -> None:
    schema = edit_schema(["writer"], ["t1"], ["t1"], 2)
    assert Draft202012Validator(schema).is_valid(json.loads(json.dumps(edit))) is valid
    if valid:
        read_edit(json.dumps(edit), ["writer"], {"t1": DONE}, round_=2, room=2)
    else:
        with pytest.raises(UnreadableReply):
            read_edit(json.dumps(edit), ["writer"], {"t1": DONE}, round_=2, room=2)


def test_the_last_edit_can_only_end() -> None:
    valid = Draft202012Validator(edit_schema(["writer"], ["t1", "t2"], ["t2"], 0)).is_valid
    assert valid({"answer_from": "t2"}) and valid({"answer": "It."})
    assert not valid({"answer_from": "t1"}) and not valid({"add": [new_task("t3")]})


@pytest.mark.parametrize(
    ("done", "room", "own"), [(True, 1, False), (False, 1, False), (True, 0, False), (False, 0, True)]
)
def test_without_an_own_answer_the_manager_names_a_task_if_it_can(done: bool, room: int, own: bool) -> None:
    known = {"t1": DONE if done else replace(DONE, state="failed")}
    valid = Draft202012Validator(edit_schema(["writer"], ["t1"], ["t1"] * done, room, own_answer=False)).is_valid
    assert valid({"answer": "It."}) is own and valid({"answer_from": "t1"}) is done
    assert valid({"add": [{"id": "t2", "member": "writer", "task": "Do it."}]}) is (room > 0)
    if own:
        read_edit('{"answer": "It."}', ["writer"], known, round_=2, room=room, own_answer=False)
    else:
        with pytest.raises(UnreadableReply, match="result of a task"):
            read_edit('{"answer": "It."}', ["writer"], known, round_=2, room=room, own_answer=False)
    for unreadable in ("It.", "{}"):
        with pytest.raises(UnreadableReply) as refused:
            read_edit(unreadable, ["writer"], known, round_=2, room=room, own_answer=False)
        assert ('{"answer": "..."}' in str(refused.value)) is own


def accepts(constraint: Constraint | None, text: str) -> bool:
    """Whether a whole reply satisfies a constraint."""
    assert constraint is not None
    matcher = compiled(constraint, LLTokenizer("byte"))
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


def test_a_reply_is_one_call_one_action_or_text() -> None:
    calls = {"type": "object", "properties": {"tool": {"const": "echo"}}, "required": ["tool"]}
    answers = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    both = Replies((answers,), text=True).constraint(calls)
    for text in ('{"tool": "echo"}', '{"answer": "yes"}', "yes", "Lima, or so."):
        assert accepts(both, text), text
    for text in ("", "  ", '{"answer": 1}', 'yes {"answer": "no"}', "[1]"):
        assert not accepts(both, text), text
    assert not accepts(Replies((answers,)).constraint(), "yes")
    assert Replies(text=True).constraint() is None


@pytest.fixture
def steps_of(make_policy: Callable[..., Any]) -> Callable[..., list[Step]]:
    """Steps of two attempts by a model of random weights."""

    def run(name: str, settings: dict[str, Any]) -> list[Step]:
        worker = AgentFlowWorker(
            FlowConfig(name=name, tools=("calculator",), settings={"constrained": True, "max_errors": 0, **settings}),
            {"policy": make_policy("float32", rank=4).role_engine},
            sampling=SamplingConfig(max_tokens=64),
        )

        async def some() -> list[Step]:
            task = Task(id="t", prompt="What is 15 + 27?")
            made = [await worker.run(Attempt(task=task, uid=f"u{n}", prompt_uid="p", seed=n)) for n in range(4)]
            assert not any(one.error for one in made)
            return [step for one in made for step in one.steps]

        return asyncio.run(some())

    return run


TEAMS = {
    "coordinator": {"members": {"a": TOOLED, "b": {}}, "max_rounds": 2, "max_tasks": 2},
    "peers": {"members": {"a": TOOLED, "b": {}, "c": {}}, "topology": "full", "max_hops": 4},
    "handoff": {"members": {"a": TOOLED, "b": {}}, "max_handoffs": 2},
}


@pytest.mark.parametrize("name", TEAMS)
def test_whole_replies_of_an_untrained_model_are_valid(name: str, steps_of) -> None:
    steps = steps_of(name, TEAMS[name])
    whole = [step for step in steps if step.finish_reason == "stop" and "parsed" in step.metadata]
    assert whole and all(step.metadata["parsed"] for step in whole)
    for step in steps:
        if step.constraint is not None:
            check(step.constraint)
        else:  # a member of the coordinator that has no tool, or no call left
            assert name == "coordinator" and step.role in ("a", "b")
