"""Actions and plans of attempts do not outlive the attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from midstream.core.types import Status, Task, Trajectory
from midstream.plans import AgentExecutor
from midstream.plans.views import runs
from midstream.record.action_log import load_actions
from midstream.record.store import Store
from midstream.record.trajectories import Trajectories
from midstream.rollouts import Attempt
from midstream.rollouts.sinks import LocalSink, delete_unowned_actions

TASK = Task(id="t", prompt="?", kind="k", split="train")
ATTEMPT = Attempt(task=TASK, uid="u", prompt_uid="t", seed=0, train_step=3)
ENDED = Trajectory(uid="u", prompt_uid="t", task=TASK, steps=(), status=Status.COMPLETED)
PLAN = {"nodes": [{"id": "v", "handler": "value", "args": {"value": 1}}]}


def in_store(path: Path, *sessions: Callable[[Store], Awaitable[None]]) -> None:
    """Run each session in a process of its own, as far as the store can tell."""
    for session in sessions:
        with Store(path / "s.sqlite") as store:
            asyncio.run(session(store))  # pyright: ignore[reportArgumentType]


async def begun(store: Store, *, kept: bool = False) -> LocalSink:
    """Begin the attempt, take an action, and run a plan to its end."""
    sink = LocalSink(store, resume=True)
    await sink.begin(ATTEMPT)
    earlier = sink.earlier(ATTEMPT)
    assert earlier is not None

    async def act() -> str:
        return "p"

    await earlier.actions.run({"tool": "x"}, act)
    async with AgentExecutor(store.database) as executor:
        await executor.run(PLAN, uid="p")
    await earlier.actions.run({"plan": "round-0", **({"kept": True} if kept else {})}, act, key="plan:round-0")
    return sink


def left(store: Store) -> tuple[int, list[str]]:
    """The number of actions of the attempt, and the uids of plans."""
    return store.database.read(
        lambda connection: (len(load_actions(connection, "u")), [row.uid for row in runs(connection)])
    )


def test_actions_of_an_attempt_that_ended_before_a_kill_are_deleted(tmp_path: Path) -> None:
    async def first(store: Store) -> None:
        await begun(store)
        await store.trajectories.finish(ENDED, ATTEMPT.channel)  # as an earlier version did, before it deleted actions

    async def second(store: Store) -> None:
        assert left(store) == (2, ["p"])
        sink = LocalSink(store, resume=True)
        await sink.begin(ATTEMPT)
        earlier = sink.earlier(ATTEMPT)
        assert earlier is not None and earlier.ended is not None and earlier.ended.status is Status.COMPLETED
        assert left(store) == (0, [])

    in_store(tmp_path, first, second)


@pytest.mark.parametrize("kept", [False, True])
def test_an_attempt_that_is_cancelled_while_it_ends_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    async def session(store: Store) -> None:
        sink = await begun(store, kept=kept)
        recorded, finish = asyncio.Event(), Trajectories.finish

        async def finish_and_stay(*args: Any, **kwargs: Any) -> None:
            await finish(*args, **kwargs)
            recorded.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Trajectories, "finish", finish_and_stay)
        ending = asyncio.create_task(sink.finish(ENDED, ATTEMPT))
        await recorded.wait()
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        sink.forget(ATTEMPT)
        assert store.trajectories.get("u").status is Status.COMPLETED
        assert left(store) == (0, ["p"] if kept else [])

    in_store(tmp_path, session)


async def interrupted(store: Store) -> None:
    await begun(store)


def test_an_attempt_that_starts_again_leaves_no_ended_plan(tmp_path: Path) -> None:
    async def again(store: Store) -> None:
        sink = LocalSink(store, resume=True)
        await sink.begin(ATTEMPT)
        await sink.restart(ATTEMPT)
        assert left(store) == (0, [])

    in_store(tmp_path, interrupted, again)


def test_an_attempt_that_is_replaced_without_resuming_does_not_get_the_old_actions(tmp_path: Path) -> None:
    async def replaced(store: Store) -> None:
        await LocalSink(store).begin(ATTEMPT)
        await store.acknowledge()

    async def resumed(store: Store) -> None:
        assert left(store) == (0, [])
        sink = LocalSink(store, resume=True)
        await sink.begin(ATTEMPT)
        earlier = sink.earlier(ATTEMPT)
        assert earlier is not None and earlier.actions.names == []

    in_store(tmp_path, interrupted, replaced, resumed)


def test_actions_whose_trajectory_was_discarded_are_deleted(tmp_path: Path) -> None:
    async def discarded(store: Store) -> None:
        delete_unowned_actions(store)
        assert left(store) == (2, ["p"])  # the attempt can be resumed
        store.trajectories.discard_from(0)
        assert store.trajectories.find("u") is None
        delete_unowned_actions(store)
        assert left(store) == (0, [])

    in_store(tmp_path, interrupted, discarded)
