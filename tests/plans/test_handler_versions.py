"""A run keeps the versions of handlers it started with, until a migration is declared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import World, do, plan

from midstream.core.errors import RunError
from midstream.plans import AgentExecutor, Handlers, HandlersMissing, RunStatus, handler


def versions(world: World) -> tuple[Any, Any]:
    @handler("greet", version=1, effects="none")
    async def greet(name: str) -> str:
        return world.act(f"1 {name}")

    @handler("greet", version=2, effects="none")
    async def greet_2(whom: str) -> str:
        return world.act(f"2 {whom}")

    return greet, greet_2


def test_a_run_goes_on_with_the_version_it_began_with(tmp_path: Path, world: World) -> None:
    old, new = versions(world)
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}}
    made = plan(question, {"id": "g", "handler": "greet", "args": {"name": "Ann"}, "after": ["q"]})

    async def finish(executor: AgentExecutor) -> Any:
        for asked in await executor.questions("r"):
            await executor.answer("r", asked.id, 1)
        return await executor.resume("r")

    world.using(tmp_path, lambda executor: executor.run(made, uid="r"), old)
    with pytest.raises(HandlersMissing, match=r"needs handlers .* 'greet@1' for node 'g' \(registered: greet@2\)"):
        world.using(tmp_path, finish, new)
    assert world.using(tmp_path, lambda executor: executor.result("r"), new).status is RunStatus.BLOCKED
    world.using(tmp_path, finish, old, new)
    assert world.did == ["1 Ann"]


def test_starting_a_run_again_goes_on_with_it_though_handlers_were_upgraded(tmp_path: Path, world: World) -> None:
    old, new = versions(world)
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}}
    made = plan(question, {"id": "g", "handler": "greet", "args": {"name": "Ann"}, "after": ["q"]})
    world.using(tmp_path, lambda executor: executor.run(made, uid="r"), old)
    assert world.using(tmp_path, lambda executor: executor.run(made, uid="r"), old, new).status is RunStatus.WAITING
    with pytest.raises(RunError, match="with another plan or input"):
        world.using(tmp_path, lambda executor: executor.run(plan(question), uid="r"), old, new)


def test_a_handler_that_only_done_nodes_used_may_go(tmp_path: Path, world: World) -> None:
    old, new = versions(world)
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}, "after": ["g"]}
    made = plan({"id": "g", "handler": "greet", "args": {"name": "Ann"}}, question)
    asked = world.using(tmp_path, lambda executor: executor.run(made, uid="r"), old).questions[0]

    async def finish(executor: AgentExecutor) -> Any:
        await executor.answer("r", asked.id, 1)
        return await executor.resume("r")

    assert world.using(tmp_path, finish, new).status is RunStatus.SUCCEEDED


def test_a_declared_migration_takes_a_run_to_a_newer_version(tmp_path: Path, world: World) -> None:
    old, new = versions(world)
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}}
    made = plan(question, {"id": "g", "handler": "greet", "args": {"name": "Ann"}, "after": ["q"]})
    asked = world.using(tmp_path, lambda executor: executor.run(made, uid="r"), old).questions[0]

    async def main() -> Any:
        handlers = Handlers([*world.handlers, new])
        handlers.migrate("greet", 1, 2, lambda args: {"whom": args["name"]})
        async with AgentExecutor(tmp_path / "plans.db", handlers) as executor:
            await executor.answer("r", asked.id, 1)
            return await executor.resume("r")

    assert asyncio.run(main()).status is RunStatus.SUCCEEDED and world.did == ["2 Ann"]


def test_a_changed_source_under_the_same_version_strands_nothing_and_is_told(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    @handler("f", effects="none")
    async def before() -> int:
        return 1

    @handler("f", effects="none")
    async def after() -> int:
        return 2

    made = plan({"id": "q", "handler": "ask", "args": {"prompt": "?"}}, {"id": "f", "handler": "f", "after": ["q"]})
    asked = world.using(tmp_path, lambda executor: executor.run(made, uid="r"), before).questions[0]

    async def main(executor: Any) -> Any:
        await executor.answer("r", asked.id, 1)
        result = await executor.resume("r")
        return result, [event.data async for event in executor.events("r") if event.kind == "note"]

    result, notes = world.using(tmp_path, main, after)
    assert result.output == {"f": 2} and {"handler_changed": "f@1"} in notes


def test_a_blocked_run_can_be_cancelled(tmp_path: Path, world: World) -> None:
    old, _ = versions(world)
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}, "after": ["a"]}
    greeted = {"id": "g", "handler": "greet", "args": {"name": "Ann"}, "after": ["q"]}
    made = plan(do("a", undo=True), question, greeted)
    for uid in ("undone", "kept", "back"):
        world.using(tmp_path, lambda executor, uid=uid: executor.run(made, uid=uid), old)

    async def cancel(executor: AgentExecutor) -> list[Any]:
        for uid in ("undone", "kept", "back"):
            with pytest.raises(HandlersMissing):
                await executor.resume(uid)
        await executor.cancel("undone")
        await executor.cancel("kept", compensate=False)
        return [await executor.resume("undone"), await executor.resume("kept"), await executor.rollback("back")]

    ended = world.using(tmp_path, cancel)
    assert [one.status for one in ended] == [RunStatus.CANCELLED, RunStatus.CANCELLED, RunStatus.ROLLED_BACK]
    assert world.did == ["a"] * 3 + ["undo a"] * 2
