"""Opening trajectories: refused when their group would not be trained on with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.record.conformance.groups import TASK, begin, end, keys, lease
from tests.waiting import MovedClock

from midstream.core.errors import GroupClosed
from midstream.record.store import Store


def join(store: Store, uid: str, **group: Any) -> None:
    asyncio.run(store.trajectories.open(uid, uid.partition("-")[0], TASK, "train", **group))


def test_opening_a_trajectory_of_a_leased_group_is_refused(store: Store, clock: MovedClock) -> None:
    due = clock.time() + 10
    for member in range(2):
        join(store, f"full-{member}", group_size=2)
        join(store, f"due-{member}", group_size=4, deadline=due)
    join(store, "endless-0", deadline=due)
    message = "the group 'full' of the channel 'train' has all its 2 trajectories.*would never be\\s+trained on"
    with pytest.raises(GroupClosed, match=message) as error:
        join(store, "full-2", group_size=9)
    assert "another prompt_uid" in (error.value.hint or "") and store.trajectories.find("full-2") is None
    asyncio.run(
        store.trajectories.open("full-2", "full", TASK, "val", group_size=2)
    )  # in another channel it is another group
    end(store, "due-0")
    clock.advance(12)
    for uid, why in (("due-2", "is past its deadline"), ("full-3", "has all its 2")):
        with pytest.raises(GroupClosed, match=why):
            join(store, uid)
    join(store, "endless-1")  # none of its trajectories has ended: it is leased once one has
    end(store, "full-0")
    end(store, "full-1")
    assert lease(store, count=2) == ["due", "full"]
    store.groups.consume("run", keys("due"), 1)
    for uid, why in (("full-3", "is being trained on"), ("due-2", "was trained on")):
        with pytest.raises(GroupClosed, match=why):
            join(store, uid)
    store.groups.release("run", keys("full"))
    with pytest.raises(GroupClosed, match="is ready for training"):
        join(store, "full-3")
    assert store.groups.left_out() == 0


def test_a_refused_opening_changes_nothing(store: Store) -> None:
    join(store, "p-0")  # says nothing of a group
    with pytest.raises(GroupClosed, match="has all its 1 trajectories"):
        join(store, "p-1", group_size=1)
    assert store.groups.counts()["waiting"] == 0, "the refused opening has limited a group that nobody limited"
    join(store, "p-2")
    with pytest.raises(GroupClosed):
        join(store, "p-3", group_size=2)
    join(store, "p-4", group_size=4)
    assert store.groups.counts()["waiting"] == 1 and store.trajectories.count(prompt_uid="p") == 3


def test_concurrent_openings_do_not_exceed_the_group_size(store: Store) -> None:
    async def together() -> list[BaseException | None]:
        opened = [store.trajectories.open(f"p-{n}", "p", TASK, "train", group_size=3) for n in range(8)]
        return await asyncio.gather(*opened, return_exceptions=True)

    refused = [one for one in asyncio.run(together()) if one is not None]
    assert len(refused) == 5 and all(isinstance(one, GroupClosed) for one in refused)
    assert store.trajectories.count(prompt_uid="p") == 3


def test_openings_in_two_processes_do_not_exceed_the_group_size(database: str) -> None:
    async def together(stores: tuple[Store, Store]) -> list[BaseException | None]:
        opened = [
            store.trajectories.open(f"p{n}-{place}", f"p{n}", TASK, "train", group_size=1)
            for n in range(40)
            for place, store in enumerate(stores if n % 2 else stores[::-1])
        ]
        return await asyncio.gather(*opened, return_exceptions=True)

    with Store(database, "normal") as one, Store(database, "normal") as other:
        refused = [error for error in asyncio.run(together((one, other))) if error is not None]
        assert len(refused) == 40 and all(isinstance(error, GroupClosed) for error in refused)
        assert all(one.trajectories.count(prompt_uid=f"p{n}") == 1 for n in range(40))


def test_trajectories_left_out_of_a_leased_group_are_counted(store: Store) -> None:
    for member in range(3):
        begin(store, f"p-{member}", group_size=1)
    end(store, "p-1")
    assert store.groups.left_out() == 0
    assert lease(store) == ["p"]
    end(store, "p-0")
    store.groups.consume("run", keys("p"), 1)
    assert (store.groups.left_out(), store.groups.left_out("train"), store.groups.left_out("val")) == (2, 2, 0)
