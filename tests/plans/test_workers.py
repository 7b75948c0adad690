"""Several workers on one database: leases, fencing, takeover; cancellation, deadlines, draining, full disks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Permanent, World, do, plan
from tests.waiting import MovedClock

from midstream.core.errors import LeaseLost, RunError, UserError
from midstream.plans import AgentExecutor, RunHeld, RunStatus, handler
from midstream.plans.owner import is_dead, new_owner
from midstream.store import Database


def gate(world: World) -> tuple[Any, asyncio.Event, asyncio.Event]:
    """A handler that tells when it begins and waits to be let go."""
    begun, let_go = asyncio.Event(), asyncio.Event()

    @handler("gated", effects="idempotent")
    async def gated(name: str) -> str:
        begun.set()
        await let_go.wait()
        return world.act(name)

    return gated, begun, let_go


def test_a_run_has_one_worker_at_a_time(database: str, world: World) -> None:
    gated, begun, let_go = gate(world)
    made = plan({"id": "g", "handler": "gated", "args": {"name": "g"}}, do("a", "g"))

    async def main() -> None:
        with Database(database, "normal") as opened, Database(database, "normal") as other:
            first, second = (AgentExecutor(each, [*world.handlers, gated]) for each in (opened, other))
            async with first, second:
                running = asyncio.create_task(first.run(made, uid="r"))
                await begun.wait()
                with pytest.raises(RunHeld):
                    await second.resume("r")
                with pytest.raises(RunHeld, match="executes run 'r' already"):
                    await first.resume("r")
                let_go.set()
                assert (await running).status is RunStatus.SUCCEEDED
                assert (await second.resume("r")).status is RunStatus.SUCCEEDED

    asyncio.run(main())
    assert world.did == ["g", "a"]


def test_a_worker_taken_for_dead_cannot_write_and_its_run_goes_on_elsewhere(
    database: str, world: World, clock: MovedClock
) -> None:
    gated, begun, let_go = gate(world)
    made = plan({"id": "g", "handler": "gated", "args": {"name": "g"}}, do("a", "g"))

    async def main() -> None:
        with Database(database, "normal") as opened, Database(database, "normal") as other:
            first, second = (AgentExecutor(each, [*world.handlers, gated]) for each in (opened, other))
            async with second, first:
                running = asyncio.create_task(first.run(made, uid="r"))
                await begun.wait()
                assert first._keeper is not None  # pyright: ignore[reportPrivateUsage]
                first._keeper.cancel()  # pyright: ignore[reportPrivateUsage]  it hangs: its lease runs out
                clock.advance(16)
                taken = asyncio.create_task(second.resume("r"))
                while "r" not in second._runners:  # pyright: ignore[reportPrivateUsage]
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                let_go.set()
                with pytest.raises(LeaseLost):
                    await running
                assert (await taken).status is RunStatus.SUCCEEDED
                events = [event async for event in second.events("r")]
                ends = [event for event in events if event.path == "g" and event.data.get("state") == "succeeded"]
                assert len(ends) == 1

    asyncio.run(main())
    assert world.did.count("a") == 1


def test_two_workers_share_many_runs_and_no_node_runs_twice(database: str, world: World) -> None:
    async def main() -> None:
        with Database(database, "normal") as opened, Database(database, "normal") as other:
            first, second = (AgentExecutor(each, world.handlers) for each in (opened, other))
            async with first, second:
                for number in range(12):
                    await first.start(plan(do(f"a{number}"), do(f"b{number}", f"a{number}")), uid=f"r{number}")
                workers = [asyncio.create_task(one.work(poll_s=0.02)) for one in (first, second)]
                for number in range(12):
                    while (await first.result(f"r{number}")).status is not RunStatus.SUCCEEDED:
                        await asyncio.sleep(0.02)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(main())
    assert sorted(world.did) == sorted([f"{name}{number}" for number in range(12) for name in "ab"])


def test_the_death_of_a_process_on_this_machine_is_noticed_at_once() -> None:
    script = "from midstream.plans.owner import new_owner; print(new_owner())"
    owner = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert is_dead(owner)
    assert not is_dead(new_owner()) and not is_dead(new_owner().replace("/", "/x", 1).replace("/x", "/"))
    machine, _, started, rest = new_owner().split("/")
    assert is_dead(f"{machine}/{os.getpid()}/{started}0/{rest}")  # its number was given to another process
    assert not is_dead(f"other-machine/1/2/{rest}") and not is_dead("a name of another kind")


def test_a_process_whose_start_is_hidden_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where users do not see each other's processes."""
    other = "/".join((new_owner().split("/")[0], str(os.getpid()), "12345", "x"))
    assert is_dead(other)
    monkeypatch.setattr("midstream.plans.owner._started", lambda pid: "")
    assert not is_dead(other)


def test_a_cancelled_run_is_compensated_or_kept(tmp_path: Path, world: World) -> None:
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}, "after": ["a"]}
    made = plan(do("a", undo=True), question, do("b", "q"))

    async def main(executor: Any) -> Any:
        results: list[Any] = []
        for uid, compensate in (("undo", True), ("keep", False)):
            await executor.run(made, uid=uid)
            await executor.cancel(uid, compensate=compensate)
            results.append((await executor.resume(uid), list(world.did)))
            world.did.clear()
        return results

    (undone, did), (kept, did_then) = world.using(tmp_path, main)
    assert undone.status is kept.status is RunStatus.CANCELLED
    assert (did, did_then) == (["a", "undo a"], ["a"])
    assert not undone.questions


def test_a_call_that_outlives_the_grace_is_stopped_and_its_doubt_resolved(tmp_path: Path, world: World) -> None:
    calls = 0

    @handler("slow", effects="idempotent")
    async def slow(name: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return world.act(name)

    node = {"id": "s", "handler": "slow", "args": {"name": "s"}, "compensate": {"handler": "undo"}}

    async def main(executor: Any) -> Any:
        running = asyncio.create_task(executor.run(plan(node | {"retry": {"first_s": 0}}), uid="r"))
        while not calls:
            await asyncio.sleep(0.01)
        await executor.cancel("r")
        return await running

    assert world.using(tmp_path, main, slow, grace_s=0.05).status is RunStatus.CANCELLED
    assert world.did == ["s", "undo s"]  # it ran again to learn what there is to undo


def test_a_run_past_its_deadline_fails(tmp_path: Path, world: World, clock: MovedClock) -> None:
    made = plan(do("a", undo=True), {"id": "q", "handler": "ask", "args": {"prompt": "?"}}, deadline_s=60)
    first = world.using(tmp_path, lambda executor: executor.run(made, uid="r"))
    clock.advance(61)
    last = world.using(tmp_path, lambda executor: executor.resume("r"))
    assert (first.status, last.status) == (RunStatus.WAITING, RunStatus.ROLLED_BACK)
    assert last.error == "DeadlinePassed: the run's deadline passed"


def test_draining_lets_what_runs_end_and_starts_nothing(tmp_path: Path, world: World) -> None:
    gated, begun, let_go = gate(world)
    made = plan({"id": "g", "handler": "gated", "args": {"name": "g"}}, do("a", "g"))

    async def main(executor: Any) -> Any:
        running = asyncio.create_task(executor.run(made, uid="r"))
        await begun.wait()
        draining = asyncio.create_task(executor.drain())
        await asyncio.sleep(0.02)
        let_go.set()
        await draining
        return await running

    assert world.using(tmp_path, main, gated).status is RunStatus.RUNNING
    assert world.did == ["g"]
    assert world.using(tmp_path, lambda executor: executor.resume("r"), gated).status is RunStatus.SUCCEEDED
    assert world.did == ["g", "a"]


def test_draining_stops_a_rollback_and_the_next_worker_ends_it(tmp_path: Path, world: World) -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    @handler("slow_undo", effects="idempotent")
    async def slow_undo(args: dict[str, Any]) -> None:
        begun.set()
        await let_go.wait()
        world.act(f"undo {args['name']}")

    world.fail("z", Permanent("no"))
    undo = {"handler": "slow_undo"}
    made = plan(do("a", compensate=undo), do("b", "a", compensate=undo), do("z", "b"))

    async def drained(executor: AgentExecutor) -> Any:
        running = asyncio.create_task(executor.run(made, uid="r"))
        await begun.wait()
        draining = asyncio.create_task(executor.drain())
        await asyncio.sleep(0)
        let_go.set()
        await draining
        return await running

    assert world.using(tmp_path, drained, slow_undo).status is RunStatus.ROLLING_BACK
    assert world.did == ["a", "b", "undo b"]
    result = world.using(tmp_path, lambda executor: executor.resume("r"), slow_undo)
    assert result.status is RunStatus.ROLLED_BACK and world.did == ["a", "b", "undo b", "undo a"]


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(tmp_path: Path, world: World) -> None:
    large = {"id": "big", "handler": "grow", "after": ["a"]}

    @handler("grow", effects="none")
    async def grow() -> str:
        return "x" * 2_000_000

    async def main(executor: Any) -> Any:
        pages = executor.database.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        limit = f"PRAGMA max_page_count={pages + 60}"
        executor.database.change(lambda connection: connection.exec_driver_sql(limit))
        await executor.run(plan(do("a"), large, do("b", "big")), uid="r")

    with pytest.raises(RunError, match="no room left"):
        world.using(tmp_path, main, grow)
    assert world.did == ["a"]
    assert world.using(tmp_path, lambda executor: executor.resume("r"), grow).status is RunStatus.SUCCEEDED
    assert world.did == ["a", "b"]


POISON = """
import asyncio, os, sys
from midstream.plans import NOT_DONE, AgentExecutor, Permanent, handler

async def look():
    return NOT_DONE

@handler("poison", effects=sys.argv[2], probe=look if sys.argv[2] == "once" else None)
async def poison() -> None:
    os._exit(9)

@handler("well", effects="idempotent")
async def well(fails: bool = False) -> str:
    if fails:
        raise Permanent("no")
    return "well"

async def main() -> None:
    async with AgentExecutor(sys.argv[1], [poison, well]) as executor:
        node = {"id": "p", "handler": "poison"}
        if sys.argv[3] == "fallback":
            node["fallback"] = [{"handler": "well"}]
        nodes = [node]
        if sys.argv[3] == "compensation":
            nodes = [{"id": "p", "handler": "well", "compensate": {"handler": "poison"}}]
            nodes.append({"id": "q", "handler": "well", "args": {"fails": True}, "after": ["p"]})
        result = await executor.run({"nodes": nodes, "budgets": {"recoveries": 1}}, uid="r")
        node = (await executor.status("r")).nodes["p"]
        print(result.status, result.error or result.output, (node.undo_error or {}).get("message", ""))

asyncio.run(main())
"""
DIED = "its worker died 2 times while it ran"


@pytest.mark.parametrize(
    ("effects", "place", "said"),
    [
        ("steps", "node", f"failed WorkerDied: {DIED}"),
        ("once", "node", f"failed WorkerDied: {DIED}"),
        ("steps", "fallback", "succeeded {'p': 'well'}"),
        ("idempotent", "compensation", f"rollback_failed Permanent: no {DIED}"),
    ],
)
def test_what_kills_its_worker_again_and_again_fails(tmp_path: Path, effects: str, place: str, said: str) -> None:
    for died in range(3):
        command = [sys.executable, "-c", POISON, str(tmp_path / "plans.db"), effects, place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == (9 if died < 2 else 0), done.stderr
    assert done.stdout.strip() == said


def test_the_same_run_is_created_once_and_a_question_answered_once(database: str, world: World) -> None:
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}}

    async def main() -> None:
        with Database(database, "normal") as opened:
            async with AgentExecutor(opened, world.handlers) as executor:
                await executor.run(plan(do("a")), uid="r")
                assert (await executor.run(plan(do("a")), uid="r")).status is RunStatus.SUCCEEDED
                with pytest.raises(RunError, match="run 'r' exists, with another plan or input"):
                    await executor.start(plan(do("b")), uid="r")
                with pytest.raises(RunError, match="cannot be the uid of a run"):
                    await executor.start(plan(do("b")), uid="../r")
                asked = (await executor.run(plan(question), uid="s")).questions[0]
                answers = [executor.answer("s", asked.id, number) for number in range(5)]
                refused = [one for one in await asyncio.gather(*answers, return_exceptions=True) if one is not None]
                assert len(refused) == 4 and all(isinstance(one, UserError) for one in refused)

    asyncio.run(main())
    assert world.did == ["a"]


def test_errors_of_one_run_leave_others_alone(tmp_path: Path, world: World) -> None:
    world.fail("bad", Permanent("no"))

    async def main(executor: Any) -> Any:
        return await asyncio.gather(*(executor.run(plan(do(name))) for name in ("bad", "good")))

    bad, good = world.using(tmp_path, main)
    assert (bad.status, good.status) == (RunStatus.FAILED, RunStatus.SUCCEEDED)
