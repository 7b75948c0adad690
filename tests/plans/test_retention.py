"""Runs that ended long ago are deleted by the executor itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.plans.world import World, do, plan
from tests.waiting import MovedClock

from midstream.core.errors import RunError
from midstream.plans import AgentExecutor, RunStatus, handler, views
from midstream.plans.executor import PRUNE_EVERY_S

DAY = 86_400.0


def runs(executor: AgentExecutor) -> set[str]:
    return {row.uid for row in executor.database.read(views.runs)}


async def soon(executor: AgentExecutor, expected: set[str]) -> None:
    """Wait until only these runs are left."""
    async with asyncio.timeout(20):
        while runs(executor) != expected:
            await asyncio.sleep(0.01)


def test_an_executor_that_begins_deletes_runs_past_its_retention(
    tmp_path: Path, world: World, clock: MovedClock
) -> None:
    async def begun(executor: AgentExecutor) -> set[str]:
        return runs(executor)

    asks = {"id": "q", "handler": "ask", "args": {"prompt": "?"}}
    for uid, made in (("old", plan(do("a"))), ("waiting", plan(asks))):
        world.using(tmp_path, lambda executor, uid=uid, made=made: executor.run(made, uid=uid))
    clock.advance(2 * DAY)
    world.using(tmp_path, lambda executor: executor.run(plan(do("b")), uid="new"))
    assert world.using(tmp_path, begun) == {"old", "waiting", "new"}
    assert world.using(tmp_path, begun, retention_s=3 * DAY) == {"old", "waiting", "new"}
    assert world.using(tmp_path, begun, retention_s=DAY) == {"waiting", "new"}


def test_a_worker_deletes_old_runs_now_and_then(tmp_path: Path, world: World, clock: MovedClock) -> None:
    async def main(executor: AgentExecutor) -> None:
        await executor.run(plan(do("a")), uid="old")
        worker = asyncio.create_task(executor.work())
        clock.advance(DAY / 2)
        await asyncio.sleep(0.05)
        assert runs(executor) == {"old"}
        clock.advance(DAY / 2 + 1)
        await soon(executor, set())
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    world.using(tmp_path, main, retention_s=DAY)


def test_old_runs_are_deleted_while_a_long_run_goes_on_even_after_a_failure(
    tmp_path: Path, world: World, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = asyncio.Event()

    @handler("long", effects="none", timeout_s=100 * DAY)  # the clock is moved by days
    async def long() -> None:
        await let_go.wait()

    async def main(executor: AgentExecutor) -> None:
        await executor.run(plan(do("a")), uid="old")
        running = asyncio.create_task(executor.run(plan({"id": "l", "handler": "long"}), uid="long"))
        refusals = 0

        def refuse(*args: Any) -> list[str]:
            nonlocal refusals
            refusals += 1
            raise RunError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr("midstream.plans.history.prune", refuse)
            async with asyncio.timeout(20):
                while not refusals:
                    clock.advance(PRUNE_EVERY_S)
                    await asyncio.sleep(0.01)
        clock.advance(DAY)
        await soon(executor, {"long"})
        let_go.set()
        assert (await running).status is RunStatus.SUCCEEDED

    world.using(tmp_path, main, long, retention_s=DAY, lease_s=10 * DAY)


def test_a_run_that_a_worker_rolls_back_is_not_deleted(tmp_path: Path, world: World, clock: MovedClock) -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    @handler("slow_undo", effects="idempotent")
    async def slow_undo(args: dict[str, Any]) -> None:
        begun.set()
        await let_go.wait()
        world.act("undo")

    async def main(executor: AgentExecutor) -> None:
        await executor.run(plan(do("a", compensate={"handler": "slow_undo"})), uid="r")
        clock.advance(2 * DAY)
        rolling = asyncio.create_task(executor.rollback("r"))
        await begun.wait()
        # As it is until the first transaction of the worker.
        ended = "UPDATE plan_runs SET status = 'succeeded', ended_at = 0"
        executor.database.change(lambda connection: connection.execute(sa.text(ended)))
        pruned = await executor.prune(DAY)
        let_go.set()
        assert pruned == [] and (await rolling).status is RunStatus.ROLLED_BACK
        clock.advance(2 * DAY)
        assert await executor.prune(DAY) == ["r"]

    world.using(tmp_path, main, slow_undo)


def test_pruning_leaves_no_row_behind(tmp_path: Path, world: World) -> None:
    asks = {"id": "q", "handler": "ask", "args": {"prompt": "x" * 1000}}

    async def main(executor: AgentExecutor) -> dict[str, int]:
        await executor.run(plan(do("a"), asks), uid="r")
        await executor.cancel("r")
        await executor.resume("r")
        assert await executor.prune(-1) == ["r"]

        def count(connection: sa.Connection) -> dict[str, int]:
            names = [name for name in sa.inspect(connection).get_table_names() if name.startswith(("plan_", "lease"))]
            return {name: connection.scalar(sa.text(f"SELECT count(*) FROM {name}")) or 0 for name in names}

        return executor.database.read(count)

    left = world.using(tmp_path, main)
    assert len(left) >= 8 and set(left.values()) == {0}


def test_a_negative_retention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="retention_s must be at least 0, not -1"):
        AgentExecutor(tmp_path / "plans.db", retention_s=-1)
