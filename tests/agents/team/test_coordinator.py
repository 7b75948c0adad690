"""The coordinator: tasks become nodes of a plan, members see what they depend on, and every end has a name."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from midstream.agents.config import RoleConfig
from midstream.agents.plan_journal import open_executor
from midstream.agents.team.actions import UnreadableReply
from midstream.agents.team.edits import TeamTask, read_edit
from midstream.core.errors import ConfigError, EngineError
from midstream.core.types import Status, Trajectory
from midstream.plans import AgentExecutor, views
from midstream.tools import tool

MEMBERS = {"searcher": {"instructions": "You look things up."}, "writer": {"instructions": "You write summaries."}}


def add(*tasks: dict[str, Any]) -> str:
    return json.dumps({"add": tasks})


def task(id: str, member: str, text: str, *after: str) -> dict[str, Any]:
    return {"id": id, "member": member, "task": text, "after": after}


@pytest.fixture
def coordinate(make_worker, by_role, attempt):
    """A trajectory in which the roles reply so."""

    def run(settings: dict[str, Any] | None = None, flow: dict[str, Any] | None = None, **replies: Any) -> Trajectory:
        worker = make_worker(
            by_role(**replies), "coordinator", settings={"members": MEMBERS, **(settings or {})}, **(flow or {})
        )
        return asyncio.run(worker.run(attempt("What is new about tides?")))

    return run


@tool
async def hang() -> str:
    """Never returns."""
    hanging.set()
    await asyncio.Event().wait()
    return ""


hanging = asyncio.Event()


def test_a_cancelled_attempt_leaves_no_plan_behind(make_worker, by_role, attempt) -> None:
    says = by_role(manager=add(task("a", "helper", "Help.")), helper='{"tool": "hang", "args": {}}')
    members = {"helper": {"tools": ["hang"]}}
    worker = make_worker(says, "coordinator", settings={"members": members}, tools=(f"{__name__}:hang",))

    async def plans_left() -> int:
        # Another attempt keeps the database of this process open.
        async with AsyncExitStack() as resources:
            session = SimpleNamespace(database=None, resources=resources)
            other = await open_executor(cast(Any, session), [])
            running = asyncio.create_task(worker.run(attempt("?")))
            await hanging.wait()
            running.cancel()
            await asyncio.wait([running])
            return len(other.database.read(lambda connection: views.runs(connection)))

    assert asyncio.run(plans_left()) == 0


def test_the_manager_adds_tasks_and_answers_from_a_result(coordinate) -> None:
    made = coordinate(
        manager=[
            add(task("find", "searcher", "Find news about tides"), task("sum", "writer", "Sum it up", "find")),
            '{"answer_from": "sum"}',
        ],
        searcher="Tides rose.",
        writer="In short: tides rose.",
    )
    assert (made.status, made.answer, made.metadata["outcome"]) == (
        Status.COMPLETED,
        "In short: tides rose.",
        "answered",
    )
    assert [step.role for step in made.steps] == ["manager", "searcher", "writer", "manager"]
    # The writer sees the result it depends on, as data; the searcher sees nobody's.
    assert '<result tool="find">\nTides rose.\n</result>' in made.steps[2].messages[-1]["content"]
    assert "<result" not in made.steps[1].messages[-1]["content"]
    assert '"state": "succeeded", "result": "In short: tides rose."' in made.steps[3].messages[-1]["content"]
    assert [(one["id"], one["state"]) for one in made.metadata["plan"]] == [("find", "succeeded"), ("sum", "succeeded")]
    assert made.steps[0].metadata["edit"]["add"][1]["after"] == ["find"]


def test_the_manager_cannot_answer_without_the_team_if_it_has_no_own_answer(coordinate) -> None:
    replies = ['{"answer": "They rise."}', add(task("a", "searcher", "Find news about tides")), '{"answer_from": "a"}']
    made = coordinate({"own_answer": False}, manager=replies, searcher="Tides rose.")
    assert (made.answer, made.metadata["outcome"]) == ("Tides rose.", "answered")
    assert [step.metadata["parsed"] for step in made.steps if step.role == "manager"] == [False, True, True]
    assert coordinate(manager=replies).answer == "They rise."


def test_later_turns_build_on_earlier_results(coordinate) -> None:
    made = coordinate(
        manager=[
            add(task("a", "searcher", "Find tides")),
            add(task("b", "writer", "Sum up", "a")),
            '{"answer": "It is done"}',
        ],
        searcher="Tides.",
        writer="Short.",
    )
    assert made.answer == "It is done" and made.turns == 3
    assert [step.role for step in made.steps] == ["manager", "searcher", "manager", "writer", "manager"]
    assert "Tides." in made.steps[3].messages[-1]["content"]


def test_the_plan_is_run_by_the_executor_in_revisions(coordinate, monkeypatch) -> None:
    revised: list[list[str]] = []
    revise = AgentExecutor.revise

    async def noted(self: AgentExecutor, uid: str, plan: Any) -> None:
        revised.append([node["id"] for node in plan["nodes"]])
        await revise(self, uid, plan)

    monkeypatch.setattr(AgentExecutor, "revise", noted)
    coordinate(manager=[add(task("a", "searcher", "Find")), '{"answer": "x"}'], searcher="y")
    assert revised == [["a", "manage-1", "manage-2"]]


def test_an_edit_that_cannot_be_done_goes_back_to_the_manager(coordinate) -> None:
    made = coordinate(
        manager=["Searcher, please!", add(task("a", "sercher", "Find")), '{"answer": "x"}'],
    )
    shown = [step.messages[-1]["content"] for step in made.steps]
    assert "Error: write one JSON object" in shown[1]
    assert "Error: 'sercher' is no member; did you mean 'searcher'?" in shown[2]
    assert made.answer == "x" and [step.metadata["parsed"] for step in made.steps] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "replies", "outcome"),
    [
        ({"max_rounds": 2}, [add(task("a", "writer", "1")), add(task("b", "writer", "2"))], "max_rounds"),
        ({"max_errors": 1}, ["hello"], "unreadable"),
        # The manager asks for the same again and again: that is no progress, and refused.
        ({"max_errors": 1}, [add(task("a", "writer", "1")), *[add(task("b", "writer", "1"))] * 2], "unreadable"),
    ],
)
def test_what_does_not_end_by_itself_ends_in_a_named_state(coordinate, settings, replies, outcome: str) -> None:
    made = coordinate(settings, manager=replies, writer="ok")
    assert made.status is Status.COMPLETED and made.answer is None and made.metadata["outcome"] == outcome


def test_a_task_that_fails_is_shown_to_the_manager(coordinate) -> None:
    made = coordinate(
        manager=[
            add(task("a", "searcher", "Find"), task("b", "writer", "Sum up", "a")),
            add(task("c", "writer", "Do without")),
            '{"answer_from": "c"}',
        ],
        searcher="",
        writer="done",
    )
    assert made.answer == "done"
    assert [one["state"] for one in made.metadata["plan"]] == ["failed", "skipped", "succeeded"]
    assert "searcher wrote nothing" in made.steps[2].messages[-1]["content"]


def test_an_engine_that_does_not_answer_fails_the_attempt_as_infrastructure(coordinate) -> None:
    made = coordinate(manager=[add(task("a", "searcher", "Find"))], searcher=EngineError("the server is down"))
    assert made.status is Status.FAILED and made.error == "the server is down"
    assert made.metadata["failure"] == "infrastructure"


def test_members_call_their_own_tools(coordinate) -> None:
    members = {"counter": {"tools": ["calculator"]}}
    made = coordinate(
        {"members": members},
        {"tools": ("calculator",)},
        manager=[add(task("a", "counter", "What is 6 * 7?")), '{"answer_from": "a"}'],
        counter=['{"tool": "calculator", "args": {"expression": "6*7"}}', "42"],
    )
    assert made.answer == "42" and [call.result for call in made.tool_calls] == ["42"]
    with pytest.raises(ConfigError, match=r"members\.counter has the tool 'calculator', and flow\.tools has not"):
        coordinate({"members": members}, manager="x")


def test_each_role_is_trained_or_frozen(make_worker, by_role, attempt) -> None:
    worker = make_worker(by_role(), "coordinator", settings={"members": MEMBERS})
    assert worker.roles == {"manager": True, "searcher": True, "writer": True}
    with pytest.raises(ConfigError, match="has no such role"):
        make_worker(by_role(), "coordinator", roles={"writr": RoleConfig()}, settings={"members": MEMBERS})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"add": []}', "write exactly one of add, answer and answer_from"),
        ('{"add": [{"id": "c", "member": "w", "task": "x"}], "answer": "y"}', "write exactly one of"),
        ('{"add": [{"id": "a", "member": "w", "task": "x"}]}', "there is a task 'a' already"),
        ('{"add": [{"id": "manage-2", "member": "w", "task": "x"}]}', "'manage-2' cannot be an id"),
        ('{"add": [{"id": "input", "member": "w", "task": "x"}]}', "'input' cannot be an id"),
        ('{"add": [{"id": "c", "member": "w", "task": "x", "after": ["d"]}]}', "comes after 'd'"),
        ('{"add": [{"id": "c", "member": "w", "task": "x", "after": ["c"]}]}', "comes after 'c'"),
        ('{"add": [{"id": "c", "member": "w", "task": "x", "after": ["b"]}]}', "'c' comes after 'b', which has no"),
        ('{"add": [{"id": "c", "member": "w", "task": "one"}]}', "task 'a' asked the same of w"),
        ('{"add": [{"id": "c", "member": "w", "task": ""}]}', "add.0.task: String should have at least 1"),
        ('{"answer_from": "b"}', "task 'b' has no result"),
        ('{"add": [{"id": "c", "member": "w", "task": "x"}, {"id": "d", "member": "w", "task": "y"}]}', "room for 1"),
        ("[" * 50_000, "write one JSON object"),
    ],
)
def test_what_is_wrong_with_an_edit_is_named(text: str, problem: str) -> None:
    tasks = {
        "a": TeamTask("a", "w", "one", (), 1, "succeeded", "r"),
        "b": TeamTask("b", "w", "two", (), 1, "failed", "e"),
    }
    with pytest.raises(UnreadableReply) as raised:
        read_edit(text, ["w"], tasks, round_=2, room=1)
    assert problem in str(raised.value)
