"""`LocalSink` after the death of a process."""

from __future__ import annotations

import asyncio
from pathlib import Path

from midstream.core.types import Status, Task, Trajectory
from midstream.record.action_log import load_actions
from midstream.record.store import Store
from midstream.rollouts import Attempt
from midstream.rollouts.sinks import LocalSink

ATTEMPT = Attempt(task=Task(id="t", prompt="?", kind="k", split="train"), uid="u", prompt_uid="t", seed=0)


def test_actions_of_an_attempt_that_ended_before_a_kill_are_deleted(tmp_path: Path) -> None:
    async def act() -> str:
        return "done"

    async def first(store: Store) -> None:
        sink = LocalSink(store, resume=True)
        await sink.begin(ATTEMPT)
        earlier = sink.earlier(ATTEMPT)
        assert earlier is not None
        await earlier.actions.run({"tool": "x"}, act)
        # Its ending is on disk, and then the process dies.
        ended = Trajectory(uid="u", prompt_uid="t", task=ATTEMPT.task, steps=(), status=Status.COMPLETED)
        await store.trajectories.finish(ended, ATTEMPT.channel)
        assert store.database.read(lambda connection: load_actions(connection, "u"))

    async def second(store: Store) -> None:
        sink = LocalSink(store, resume=True)
        await sink.begin(ATTEMPT)
        earlier = sink.earlier(ATTEMPT)
        assert earlier is not None and earlier.ended is not None and earlier.ended.status is Status.COMPLETED
        assert not store.database.read(lambda connection: load_actions(connection, "u"))

    for session in (first, second):
        with Store(tmp_path / "s.sqlite") as store:
            asyncio.run(session(store))
