"""The core of the executor's contract on every store: SQLite and PostgreSQL must behave the same.

Each executor opens the database anew, as a new process does. Leases and fencing have their tests in `test_workers.py`,
kills of the process in `test_kill.py`; both run on either store, too."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.plans.world import Permanent, World, do, plan
from tests.waiting import MovedClock

from midstream.core.errors import RunError
from midstream.plans import AgentExecutor, Context, Handler, NodeState, RunStatus, handler, history, tables
from midstream.plans.errors import AnswerRefused, JournalDamaged, NoSuchRun
from midstream.plans.history import state_at
from midstream.plans.journal import load
from midstream.plans.payloads import read_body
from midstream.plans.rows import RunRow
from midstream.store import Database

ASK = {"id": "q", "handler": "ask", "args": {"prompt": "Sure?", "answer": {"type": "boolean"}}}
LONG = "long " * 2000


@pytest.fixture(scope="module")
def postgresql_url(postgresql: str) -> Iterator[str]:
    """One database for all tests here: creating one takes longer than most of them."""
    import psycopg

    with psycopg.connect(postgresql.format("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE plans_conformance")
        yield postgresql.format("plans_conformance")
        connection.execute("DROP DATABASE plans_conformance WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty journal."""
    if request.param == "sqlite":
        yield str(tmp_path / "store.db")
        return
    url: str = request.getfixturevalue("postgresql_url")
    yield url
    with Database(url, "normal") as store:
        store.require(tables.SCHEMA)
        for table in tables.metadata.sorted_tables:
            store.change(lambda connection, table=table: connection.execute(table.delete()))


@asynccontextmanager
async def opened(database: str, world: World, *more: Handler) -> AsyncIterator[AgentExecutor]:
    """An executor whose database nobody else holds open."""
    with Database(database, "normal") as store:
        async with AgentExecutor(store, [*world.handlers, *more]) as executor:
            yield executor


def count(executor: AgentExecutor, table: sa.Table) -> int:
    query = sa.select(sa.func.count()).select_from(table)
    return executor.database.read(lambda connection: connection.scalar(query)) or 0


def test_values_come_back_as_they_were_and_rows_are_what_the_events_add_up_to(database: str, world: World) -> None:
    odd = {"text": "ü\0 日本 \U0001f600 \ud800 ' \" \\", "int": 2**70, "float": 0.1, "none": None, "deep": [[{}]]}
    nodes = [{"id": name, "handler": "value", "args": {"value": value}} for name, value in (("odd", odd), ("a", LONG))]
    made = plan(*nodes, {"id": "b", "handler": "value", "args": {"value": {"$ref": "a"}}}, do("end", "b"))

    async def main() -> None:
        async with opened(database, world) as executor:
            made["output"] = {"odd": {"$ref": "odd"}, "long": {"$ref": "b"}}
            await executor.run(made, uid="r")
        async with opened(database, world) as executor:
            assert (await executor.result("r")).output == {"odd": odd, "long": LONG}
            past, saved = executor.database.read(lambda connection: (state_at(connection, "r"), load(connection, "r")))
            assert (past.run, past.nodes) == (saved.run, saved.nodes)
            assert count(executor, tables.blobs) == 3  # the plan, the long text once, and the output

    asyncio.run(main())


def test_a_run_whose_worker_is_gone_goes_on_and_repeats_nothing(database: str, world: World) -> None:
    made = plan(
        do("a"), ASK | {"after": ["a"]}, {"id": "z", "handler": "sleep", "args": {"seconds": 0.01}}, do("b", "q")
    )

    async def main() -> None:
        async with opened(database, world) as executor:
            assert (await executor.run(made, uid="r")).status is RunStatus.WAITING
        async with opened(database, world) as executor:
            question = (await executor.questions())[0]
            with pytest.raises(AnswerRefused):
                await executor.answer("r", question.id, "perhaps")
            await executor.answer("r", question.id, True)
        async with opened(database, world) as executor:
            assert (await executor.resume("r")).output == {"z": None, "b": "b!"}
            assert count(executor, tables.inbox) == 0

    asyncio.run(main())
    assert world.did == ["a", "b"]


@pytest.mark.parametrize(("outcome", "did"), [("done", ["pay"]), ("not_done", ["pay", "pay"])])
def test_a_call_whose_worker_is_gone_is_in_doubt(database: str, world: World, outcome: str, did: list[str]) -> None:
    begun = asyncio.Event()

    @handler("pay")
    async def pay() -> str:
        done = world.act("pay")
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return done

    async def main() -> None:
        async with opened(database, world, pay) as executor:
            running = asyncio.create_task(executor.run(plan({"id": "p", "handler": "pay"}, do("b", "p")), uid="r"))
            await begun.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert (await executor.status("r")).nodes["p"].state is NodeState.RUNNING
        async with opened(database, world, pay) as executor:
            result = await executor.resume("r")
            assert (await executor.status("r")).nodes["p"].state is NodeState.IN_DOUBT
            await executor.answer("r", result.questions[0].id, {"outcome": outcome, "output": "paid"})
            assert (await executor.resume("r")).output == {"b": "b!"}

    asyncio.run(main())
    assert world.did == [*did, "b"]


def test_a_failed_run_is_compensated_in_reverse_order_and_once(database: str, world: World) -> None:
    world.fail("c", Permanent("no"))
    world.fail("undo a", Permanent("not now"))
    made = plan(do("a", undo=True), do("b", "a", undo=True), do("c", "b"))

    async def main() -> None:
        async with opened(database, world) as executor:
            first = await executor.run(made, uid="r")
            assert (first.status, first.remains) == (RunStatus.ROLLBACK_FAILED, ("a",))
        async with opened(database, world) as executor:
            assert (await executor.rollback("r")).status is RunStatus.ROLLED_BACK

    asyncio.run(main())
    assert world.did == ["a", "b", "undo b", "undo a"]


def test_a_run_returns_to_a_savepoint_and_goes_on_from_there(database: str, world: World) -> None:
    made = plan(do("a", undo=True, savepoint="s"), do("b", "a", undo=True), ASK | {"after": ["b"]})

    async def main() -> None:
        async with opened(database, world) as executor:
            await executor.run(made, uid="r")
            assert (await executor.rollback("r", to="s")).status is RunStatus.PAUSED
        async with opened(database, world) as executor:
            assert (await executor.resume("r")).status is RunStatus.WAITING

    asyncio.run(main())
    assert world.did == ["a", "b", "undo b", "b"]


def test_a_finished_step_is_not_repeated_after_a_failure(database: str, world: World) -> None:
    @handler("steps", effects="steps")
    async def steps(ctx: Context) -> str:
        first = await ctx.step("first", lambda: world.act("first"))
        return first + await ctx.step("second", lambda: world.act("second"))

    world.fail("second", Permanent("no"))

    async def main() -> None:
        async with opened(database, world, steps) as executor:
            made = plan({"id": "s", "handler": "steps"}, on_failure="stop")
            assert (await executor.run(made, uid="r")).status is RunStatus.FAILED
        async with opened(database, world, steps) as executor:
            assert (await executor.retry("r")).output == {"s": "first!second!"}

    asyncio.run(main())
    assert world.did == ["first", "second"]


def test_forks_share_payloads_and_go_on_by_themselves(database: str, world: World) -> None:
    made = plan({"id": "a", "handler": "value", "args": {"value": LONG}}, ASK | {"after": ["a"]})
    made["output"] = [{"$ref": "a"}, {"$ref": "q"}]

    async def main() -> None:
        async with opened(database, world) as executor:
            await executor.run(made, uid="r")
            blobs = count(executor, tables.blobs)
            for uid, value in (("yes", True), ("no", False)):
                await executor.fork("r", new_uid=uid)
                question = (await executor.questions(uid))[0]
                await executor.answer(uid, question.id, value)
                assert (await executor.resume(uid)).output == [LONG, value]
            assert count(executor, tables.blobs) == blobs + 2  # their outputs
            with pytest.raises(RunError, match="there is a run 'no' already"):
                await executor.fork("r", new_uid="no")
            numbers = [event.seq async for event in executor.events("no")]
            assert (await executor.result("r")).status is RunStatus.WAITING
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    asyncio.run(main())


def test_pruning_keeps_what_has_not_ended_what_has_forks_and_what_others_use(
    database: str, world: World, clock: MovedClock
) -> None:
    def made(text: str) -> dict[str, Any]:
        return plan({"id": "v", "handler": "value", "args": {"value": text * 3000}})

    async def main() -> None:
        async with opened(database, world) as executor:
            await executor.run(made("x"), uid="old")
            for uid in ("forked", "waiting"):
                await executor.run(plan(ASK), uid=uid)
            await executor.fork("forked", new_uid="fork")
            await executor.cancel("forked")
            assert (await executor.resume("forked")).status is RunStatus.CANCELLED
            clock.advance(3600)
            await executor.run(made("x"), uid="new")
            blobs = count(executor, tables.blobs)
            assert await executor.prune(1800) == ["old"]
            assert count(executor, tables.blobs) == blobs  # `new` uses the same
            with pytest.raises(NoSuchRun):
                await executor.status("old")
            for uid, problem in (("waiting", "has not ended"), ("forked", "has forks")):
                with pytest.raises(RunError, match=problem):
                    await executor.delete(uid)
            await executor.delete("new")
            assert count(executor, tables.blobs) < blobs
            question = (await executor.questions("fork"))[0]
            await executor.answer("fork", question.id, True)
            assert (await executor.resume("fork")).output == {"q": True}

    asyncio.run(main())


def test_a_payload_that_a_run_begins_to_use_while_another_is_deleted_is_kept(database: str, world: World) -> None:
    made = plan({"id": "v", "handler": "value", "args": {"value": LONG}})
    begun, end = threading.Event(), threading.Event()

    async def main() -> None:
        async with opened(database, world) as executor, opened(database, world) as other:
            await executor.run(made, uid="old")
            read = executor.database.read
            (body,) = read(lambda connection: connection.scalars(sa.select(tables.blobs.c.body)).all()[:1])
            row = RunRow("new", plan="@" + hashlib.sha256(body).hexdigest(), input="{}", created_at=1.0)

            def create(connection: sa.Connection) -> None:
                history.create(connection, row, {row.plan: body})
                begun.set()
                end.wait(10)

            creating = asyncio.create_task(asyncio.to_thread(executor.database.change, create))
            await asyncio.to_thread(begun.wait, 10)
            deleting = asyncio.create_task(other.delete("old"))
            await asyncio.wait([deleting], timeout=0.3)
            end.set()
            await asyncio.gather(creating, deleting)
            assert read(lambda connection: read_body(connection, row.plan)) == body.decode()

    asyncio.run(main())


def test_many_runs_write_at_once(database: str, world: World) -> None:
    async def main() -> None:
        async with opened(database, world) as executor:
            runs = (executor.run(plan(do(f"a{one}"), do(f"b{one}", f"a{one}")), uid=f"r{one}") for one in range(20))
            assert {result.status for result in await asyncio.gather(*runs)} == {RunStatus.SUCCEEDED}
            for one in range(20):
                past = executor.database.read(lambda connection, uid=f"r{one}": state_at(connection, uid))
                assert past.run.status is RunStatus.SUCCEEDED

    asyncio.run(main())
    assert len(world.did) == len(set(world.did)) == 40


def test_a_damaged_journal_is_named(database: str, world: World) -> None:
    async def main() -> None:
        async with opened(database, world) as executor:
            await executor.run(plan({"id": "v", "handler": "value", "args": {"value": LONG}}), uid="r")
            await executor.run(plan(do("a")), uid="s")
            executor.database.change(lambda connection: connection.execute(tables.blobs.update().values(body=b"{}")))
            cut = tables.events.delete().where(tables.events.c.run == "s", tables.events.c.seq == 2)
            executor.database.change(lambda connection: connection.execute(cut))
        async with opened(database, world) as executor:
            with pytest.raises(JournalDamaged, match="does not have the content its name says"):
                await executor.result("r")
            with pytest.raises(JournalDamaged, match="event 2 of run 's' is missing"):
                await executor.fork("s")

    asyncio.run(main())
