"""A trajectory ends once; later steps are late."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from tests.record.conformance.steps import TASK, a_step

from midstream.core.errors import AlreadyEnded
from midstream.core.types import Status, Trajectory
from midstream.record.store import Store


def test_the_first_ending_of_a_trajectory_is_kept(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "train", session={})
    store.trajectories.append_sync(a_step("u"))
    asyncio.run(store.trajectories.finish(Trajectory(uid="u", prompt_uid="p", task=TASK, steps=(a_step("u"),))))
    ended = store.trajectories.get("u")
    changes = (
        lambda: store.trajectories.update_step(a_step("u", reward=9.0)),
        lambda: store.trajectories.amend("u", task=TASK, session={"other": 1}),
        lambda: store.trajectories.open("u", "p", TASK, "val"),
    )
    for change in changes:
        with pytest.raises(AlreadyEnded):
            asyncio.run(change())
    assert store.trajectories.get("u") == ended


def test_a_trajectory_ends_once(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "train")
    first = Trajectory(uid="u", prompt_uid="p", task=TASK, reward=1.0, answer="3")
    asyncio.run(store.trajectories.finish(first))
    with pytest.raises(AlreadyEnded, match="'u' has already ended: completed"):
        asyncio.run(store.trajectories.finish(replace(first, status=Status.FAILED, reward=0.0, steps=(a_step("u"),))))
    assert store.trajectories.get("u") == first


def test_of_concurrent_ends_exactly_one_succeeds(store: Store) -> None:
    gate = threading.Event()

    async def together() -> list[BaseException | None]:
        store.trajectories.begin("u", "p", TASK, "train")
        ends = [
            store.trajectories.finish(Trajectory(uid="u", prompt_uid="p", task=TASK, reward=float(n))) for n in range(3)
        ]
        waiting = asyncio.gather(*ends, store.trajectories.append(a_step("v")), return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        return await waiting

    held = threading.Thread(target=store.database.write, args=(lambda transaction: gate.wait(),))
    held.start()
    first, second, third, append = asyncio.run(together())
    held.join()
    assert store.database.commits <= 2
    assert first is None and append is None
    assert isinstance(second, AlreadyEnded) and isinstance(third, AlreadyEnded)
    assert store.trajectories.get("u").reward == 0.0
    assert store.trajectories.get("v").steps == (a_step("v"),)


def test_a_step_after_the_end_is_marked_late_and_not_trained_on(database: str) -> None:
    late = a_step("u", 1, trainable=True, metadata={"x": (1,)})
    with Store(database) as gateway, Store(database) as other:
        gateway.trajectories.begin("u", "p", TASK, "train")
        gateway.trajectories.append_sync(a_step("u", trainable=True))
        asyncio.run(other.trajectories.finish(Trajectory(uid="u", prompt_uid="p", task=TASK)))
        gateway.trajectories.append_sync(late)
        gateway.trajectories.append_sync(a_step("u", trainable=True, text="sent again"))
        marked = replace(late, trainable=False, metadata={"x": (1,), "late": True})
        assert other.trajectories.get("u").steps == (a_step("u", trainable=True), marked)


def test_a_step_in_the_same_transaction_as_the_end_is_late_only_after_it(store: Store) -> None:
    async def together() -> None:
        store.trajectories.begin("u", "p", TASK, "train")
        done = Trajectory(uid="u", prompt_uid="p", task=TASK)
        await asyncio.gather(
            store.trajectories.append(a_step("u", 0)),
            store.trajectories.finish(done),
            store.trajectories.append(a_step("u", 1)),
        )

    asyncio.run(together())
    assert [step.metadata for step in store.trajectories.get("u").steps] == [{}, {"late": True}]
