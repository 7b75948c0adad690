"""Each trajectory belongs to one of the servers that share a store; those of a dead server move to exactly one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from tests.waiting import MovedClock

from midstream.core.errors import HeldElsewhere, NameTaken
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record.store import Store
from midstream.store.servers import DEAD_AFTER_S

TASK = Task(id="t", prompt="How many?")


@pytest.fixture
def serve(database: str) -> Iterator[Callable[[str], Store]]:
    """Open the store for a server of that name."""
    opened: list[Store] = []

    def start(name: str) -> Store:
        opened.append(Store(database, "normal"))
        opened[-1].servers.join(name)
        return opened[-1]

    yield start
    for store in opened:
        store.close()


def begin(store: Store, uid: str) -> None:
    store.trajectories.begin(uid, "p", TASK, "train", session={})
    store.flush()


def a_step(uid: str, index: int = 0, text: str = "") -> Step:
    return Step(prompt_ids=(1,), response_ids=(2,), trajectory_uid=uid, prompt_uid="p", step_index=index, text=text)


def finish(store: Store, uid: str, status: Status = Status.COMPLETED) -> None:
    asyncio.run(store.trajectories.finish(Trajectory(uid=uid, prompt_uid="p", task=TASK, status=status)))


def test_a_server_owns_its_trajectories_and_no_others(serve: Callable[[str], Store], clock: MovedClock) -> None:
    one, other = serve("one"), serve("other")
    begin(one, "a")
    begin(other, "b")
    for _ in range(20):
        clock.advance(DEAD_AFTER_S / 2)
        assert one.servers.beat().adopted == other.servers.beat().adopted == []
    assert (one.trajectories.open_uids(), other.trajectories.open_uids()) == (["a"], ["b"])
    found = other.trajectories.find("a")
    assert found is not None and other.servers.name_of(found.server or "") == "one"
    for write in (
        lambda: other.trajectories.append_sync(a_step("a")),
        lambda: finish(other, "a", Status.TIMED_OUT),
        lambda: asyncio.run(other.trajectories.open("a", "p", TASK, "train", session={})),
    ):
        with pytest.raises(HeldElsewhere, match="another server has taken over trajectory 'a'"):
            write()
    one.trajectories.append_sync(a_step("a"))
    finish(one, "a")
    assert one.trajectories.get("a").status is Status.COMPLETED and len(one.trajectories.get("a").steps) == 1


def test_trajectories_of_a_dead_server_move_to_a_live_one(serve: Callable[[str], Store], clock: MovedClock) -> None:
    dead, one, other = serve("dead"), serve("one"), serve("other")
    begin(dead, "a")
    begin(dead, "ended")
    finish(dead, "ended")
    for _ in range(3):
        clock.advance(DEAD_AFTER_S / 3)
        assert one.servers.beat().adopted == other.servers.beat().adopted == []
    clock.advance(1)
    assert (one.servers.beat().adopted, other.servers.beat().adopted) == (["a"], [])
    assert (one.trajectories.open_uids(), other.trajectories.open_uids()) == (["a"], [])
    # It was not dead, only slow: nothing of it gets through, and it hears what became of it.
    with pytest.raises(HeldElsewhere):
        dead.trajectories.append_sync(a_step("a", text="of the slow one"))
    one.trajectories.append_sync(a_step("a", text="of the new one"))
    assert [step.text for step in one.trajectories.get("a").steps] == ["of the new one"]
    beat = dead.servers.beat()
    assert beat.lost and beat.adopted == [] and dead.trajectories.open_uids() == []
    assert not dead.servers.beat().lost


def test_a_restarted_server_takes_over_its_trajectories_at_once(
    serve: Callable[[str], Store], clock: MovedClock
) -> None:
    begin(killed := serve("one"), "a")
    begin(serve("other"), "b")
    again = serve("one")
    assert again.trajectories.open_uids() == ["a"]
    again.servers.leave()
    assert serve("third").trajectories.open_uids() == ["a"]
    with pytest.raises(HeldElsewhere):
        killed.trajectories.append_sync(a_step("a"))


def test_two_servers_with_one_name_are_an_error(serve: Callable[[str], Store], clock: MovedClock) -> None:
    first, second = serve("same"), serve("same")
    with pytest.raises(NameTaken, match=r"another server joined this store as 'same'.*\n.*a name of its own"):
        first.servers.beat()
    assert not second.servers.beat().lost


def test_unowned_trajectories_go_to_the_first_server_except_those_of_rollouts(
    store: Store, serve: Callable[[str], Store]
) -> None:
    begin(store, "of-an-older-version")
    store.trajectories.begin("of-a-rollout", "p", TASK, "train")
    store.flush()
    assert serve("one").trajectories.open_uids() == ["of-an-older-version"]
    store.trajectories.append_sync(a_step("of-a-rollout"))  # who is no server may write what nobody else does
