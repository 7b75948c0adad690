"""Time travel, forks, retention, and how the journal grows."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Permanent, World, do, plan

from midstream.core.errors import RunError
from midstream.plans import NodeState, RunStatus, handler
from midstream.plans.errors import JournalDamaged, NoSuchRun
from midstream.plans.history import state_at
from midstream.plans.journal import load


def test_rows_are_what_the_events_add_up_to(tmp_path: Path, world: World) -> None:
    world.fail("c", Permanent("no"))
    made = plan(do("a", undo=True, savepoint="s"), do("b", "a", undo=True), do("c", "b"), rollback_to="s")

    async def main(executor: Any) -> None:
        await executor.run(made, uid="r")
        past = executor.database.read(lambda connection: state_at(connection, "r"))
        saved = executor.database.read(lambda connection: load(connection, "r"))
        assert (past.run, past.nodes) == (saved.run, saved.nodes)
        assert saved.nodes["b"].generation == 1

    world.using(tmp_path, main)


def test_the_state_at_every_event_is_known(tmp_path: Path, world: World) -> None:
    async def main(executor: Any) -> None:
        await executor.run(plan(do("a"), do("b", "a")), uid="r")
        last = (await executor.status("r")).run.seq
        states: list[str] = []
        for seq in range(1, last + 1):
            past = executor.database.read(lambda connection, seq=seq: state_at(connection, "r", seq))
            if (row := past.nodes.get("b")) is not None and (not states or states[-1] != row.state):
                states.append(row.state)
        assert states == ["ready", "running", "succeeded"]
        with pytest.raises(RunError, match=f"has no event {last + 1}"):
            executor.database.read(lambda connection: state_at(connection, "r", last + 1))

    world.using(tmp_path, main)


def test_a_fork_goes_on_from_an_event_and_shares_what_was_before(tmp_path: Path, world: World) -> None:
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}, "after": ["a"]}
    large = {"id": "big", "handler": "value", "args": {"value": "x" * 5000}, "after": ["q"]}
    made = plan(do("a"), question, large, do("b", "q", "big"), output=[{"$ref": "q"}, {"$ref": "b"}])

    async def main(executor: Any) -> Any:
        asked = await executor.run(made, uid="r")
        at = (await executor.status("r")).run.seq
        await executor.answer("r", asked.questions[0].id, "first")
        first = await executor.resume("r")
        outputs = [first.output]
        for number in range(3):
            uid = await executor.fork("r", at, new_uid=f"f{number}")
            question = (await executor.questions(uid))[0]
            await executor.answer(uid, question.id, f"answer {number}")
            outputs.append((await executor.resume(uid)).output)
        again = await executor.fork("f0")
        return outputs, (await executor.result(again)).output

    outputs, again = world.using(tmp_path, main)
    assert outputs == [["first", "b!"], ["answer 0", "b!"], ["answer 1", "b!"], ["answer 2", "b!"]]
    assert again == outputs[1]
    assert world.did == ["a", "b", "b", "b", "b"]
    blobs = sqlite3.connect(tmp_path / "plans.db").execute("SELECT count(*) FROM plan_blobs").fetchall()
    assert blobs[0][0] <= 3  # the plan, and the large output once


def test_a_fork_in_the_middle_of_a_call_makes_it_anew(tmp_path: Path, world: World) -> None:
    made = plan(do("a"), do("b", "a", handler="once"))

    async def main(executor: Any) -> Any:
        await executor.run(made, uid="r")
        events = [event async for event in executor.events("r")]
        begun = next(event.seq for event in events if event.path == "b" and event.data.get("state") == "running")
        uid = await executor.fork("r", begun)
        past = executor.database.read(lambda connection: state_at(connection, uid))
        assert past.nodes["b"].state is NodeState.READY
        return await executor.resume(uid)

    assert world.using(tmp_path, main).status is RunStatus.SUCCEEDED
    assert world.did == ["a", "b", "b"]


def test_events_are_read_from_a_cursor(tmp_path: Path, world: World) -> None:
    async def main(executor: Any) -> None:
        await executor.run(plan(do("a"), do("b", "a")), uid="r")
        everything = [event async for event in executor.events("r", follow=True)]
        assert [event.seq for event in everything] == list(range(1, len(everything) + 1))
        assert [event async for event in executor.events("r", 5)] == everything[5:]

    world.using(tmp_path, main)


def test_pruning_deletes_what_ended_and_what_only_it_used(tmp_path: Path, world: World) -> None:
    def made(text: str) -> dict[str, Any]:
        return plan({"id": "v", "handler": "value", "args": {"value": text * 3000}})

    async def main(executor: Any) -> None:
        await executor.run(made("x"), uid="old")
        await executor.run(made("x"), uid="same")
        await executor.run(made("y"), uid="forked")
        await executor.fork("forked", 3, new_uid="fork")
        await executor.run(plan({"id": "q", "handler": "ask", "args": {"prompt": "?"}}), uid="waiting")
        assert await executor.prune(3600) == []
        assert set(await executor.prune(-1)) == {"old", "same"}
        for uid in ("forked", "fork", "waiting"):
            await executor.status(uid)
        assert (await executor.resume("fork")).output == {"v": "y" * 3000}
        with pytest.raises(NoSuchRun):
            await executor.status("old")

    world.using(tmp_path, main)
    connection = sqlite3.connect(tmp_path / "plans.db")
    assert all("xxx" not in row[0].decode() for row in connection.execute("SELECT body FROM plan_blobs"))


def test_the_journal_grows_by_what_is_new(tmp_path: Path, world: World) -> None:
    """The trap of state stored whole at every step: what a round of a loop returns is stored once."""

    @handler("carry", effects="none")
    async def carry(text: str | None) -> str:
        return (text or "") + f"{len(text or ''):04d}" * 10

    size = 60
    node = {"id": "l", "handler": "carry", "args": {"text": {"$ref": "previous"}}, "loop": {"max_rounds": size}}
    world.run(tmp_path, plan(node), carry)
    connection = sqlite3.connect(tmp_path / "plans.db")
    (bodies,) = connection.execute("SELECT sum(length(body)) FROM plan_blobs").fetchone()
    (rows,) = connection.execute("SELECT sum(length(data)) + count(*) * 100 FROM plan_events").fetchone()
    payload = sum(40 * at for at in range(1, size + 1))
    assert bodies < 1.5 * payload and rows < size * 2000


def test_a_damaged_journal_is_named_and_left_as_it_is(tmp_path: Path, world: World) -> None:
    made = plan({"id": "v", "handler": "value", "args": {"value": "x" * 3000}}, on_failure="stop")
    world.using(tmp_path, lambda executor: executor.run(made, uid="r"))
    damage = sqlite3.connect(tmp_path / "plans.db", isolation_level=None)
    damage.execute("UPDATE plan_blobs SET body = x'22' WHERE length(body) > 10")
    with pytest.raises(JournalDamaged, match="does not have the content its name says"):
        world.using(tmp_path, lambda executor: executor.resume("r"))
    damage.execute("UPDATE plan_nodes SET data = 'nothing' WHERE path = 'v'")
    damage.execute("DELETE FROM plan_events WHERE seq = 2")
    with pytest.raises(JournalDamaged):
        world.using(tmp_path, lambda executor: executor.status("r"))
    with pytest.raises(JournalDamaged, match="event 2 of run 'r' is missing"):
        world.using(tmp_path, lambda executor: executor.fork("r"))


@pytest.mark.parametrize(
    "node",
    [
        do("m", map={"over": [1, 2], "concurrency": 1}),
        do("l", loop={"max_rounds": 2}),
        {
            "id": "s",
            "plan": plan(do("x"), do("y", "x")),
            "fallback": [{"handler": "do", "args": {"name": "alt"}}],
        },
    ],
)
def test_a_fork_at_any_event_goes_on_to_the_end(tmp_path: Path, world: World, node: dict[str, Any]) -> None:
    """Also at one in the middle of a transaction."""

    async def main(executor: Any) -> None:
        if "plan" in node:
            world.fail("x", Permanent("no"))
        first = await executor.run(plan(node, do("end", node["id"])), uid="r")
        assert first.status is RunStatus.SUCCEEDED
        for at in range(1, (await executor.status("r")).run.seq + 1):
            again = await executor.resume(await executor.fork("r", at))
            assert again.status is RunStatus.SUCCEEDED, at
        fork = await executor.fork("r", 5, new_uid="f")
        assert (await executor.resume(await executor.fork(fork, 3))).status is RunStatus.SUCCEEDED

    world.using(tmp_path, main)
