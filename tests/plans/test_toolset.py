"""The tools `plan_*`: what an agent or an MCP client sees of plans, answers and resumes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import World

from midstream.agents.toolsets import MORE
from midstream.core.errors import RunError
from midstream.plans import AgentExecutor
from midstream.tools import Toolbox
from midstream.tools.load import load

HANDLERS = """
from midstream.plans import handler

@handler("greet", effects="none")
def greet(name: str) -> str:
    return f"Hello {name}"
"""
PLAN = {
    "name": "greeting",
    "nodes": [
        {"id": "who", "handler": "ask", "args": {"prompt": "Who?", "answer": {"type": "string"}}},
        {"id": "hello", "handler": "greet", "args": {"name": {"$ref": "who"}}},
    ],
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A journal with a run that waits for an answer."""
    from midstream.plans.load import load_handlers

    file = tmp_path / "greetings.py"
    file.write_text(HANDLERS)

    async def begin() -> None:
        async with AgentExecutor(tmp_path / "plans.db", load_handlers([str(file)])) as executor:
            assert (await executor.run(PLAN, uid="one")).status == "waiting"

    asyncio.run(begin())
    return {"store": str(tmp_path / "plans.db"), "handlers": [str(file)]}


def use(settings: dict[str, Any], *calls: tuple[str, dict[str, Any]]) -> list[tuple[bool, Any]]:
    """Call tools one after another; returns whether each succeeded, and its data or its text."""

    async def main() -> list[tuple[bool, Any]]:
        loaded = load(("plans",), {"plans": settings}, MORE)
        results: list[tuple[bool, Any]] = []
        async with AsyncExitStack() as resources:
            session = Toolbox(loaded.tools, toolsets=loaded.toolsets, max_result_chars=10_000).session()
            await session.open(resources)
            results.append((True, [tool.name for tool in session.tools]))
            for name, arguments in calls:
                call, result = await session.run(name, arguments)
                results.append((call.ok, result.parts[0].data if call.ok else call.result))
        return results

    return asyncio.run(main())


def test_a_waiting_run_is_seen_answered_and_resumed(settings: dict[str, Any]) -> None:
    (_, names), (_, runs), (_, asked) = use(settings, ("plan_runs", {}), ("plan_questions", {}))
    assert names == ["plan_runs", "plan_status", "plan_questions", "plan_answer", "plan_resume"]
    assert runs == {"runs": [{"run": "one", "plan": "greeting", "status": "waiting"}]}
    (question,) = asked["questions"]
    assert (question["run"], question["prompt"], question["schema"]) == ("one", "Who?", {"type": "string"})
    answer = {"run": "one", "question": question["question"]}
    told = use(
        settings,
        ("plan_answer", {**answer, "answer": 7}),
        ("plan_answer", {**answer, "answer": "Ada"}),
        ("plan_answer", {**answer, "answer": "Eve"}),
        ("plan_resume", {"run": "one"}),
        ("plan_status", {"run": "one"}),
    )[1:]
    assert [ok for ok, _ in told] == [False, True, False, True, True]
    assert "is not of type 'string'" in told[0][1]
    assert told[3][1]["output"] == {"hello": "Hello Ada"}
    assert told[4][1]["nodes"] == {
        "who": {"state": "succeeded", "why": ""},
        "hello": {"state": "succeeded", "why": ""},
    }


def test_what_is_not_there_is_said(settings: dict[str, Any]) -> None:
    for name, arguments in (("plan_status", {"run": "two"}), ("plan_runs", {"status": "happy"})):
        ok, text = use(settings, (name, arguments))[1]
        assert not ok and text.startswith("Error: ")


def test_answers_and_resumption_can_be_left_out(settings: dict[str, Any]) -> None:
    (_, names), (ok, text) = use({**settings, "answer": False, "resume": False}, ("plan_resume", {"run": "one"}))
    assert names == ["plan_runs", "plan_status", "plan_questions"] and not ok and "unknown tool" in text


def test_a_misspelt_path_makes_no_journal(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no store at"):
        use({"store": str(tmp_path / "none.db")})
    assert not (tmp_path / "none.db").exists()


def test_a_run_that_has_ended_can_be_deleted(tmp_path: Path) -> None:
    from tests.plans.world import do, plan

    async def work(executor: AgentExecutor) -> None:
        await executor.run(plan(do("a")), uid="done")
        assert await executor.outputs("done") == {"a": "a!"}
        await executor.run(PLAN_WAITS, uid="waits")
        with pytest.raises(RunError, match="has not ended"):
            await executor.delete("waits")
        await executor.delete("done")
        with pytest.raises(RunError, match="done"):
            await executor.status("done")

    World().using(tmp_path, work)


PLAN_WAITS = {"nodes": PLAN["nodes"][:1]}
