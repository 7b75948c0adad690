"""Silent trajectories are closed, idle ones leave memory, and those of a dead gateway are taken over."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, Served, error
from tests.waiting import LIMIT_S, MovedClock, until

from midstream.core.types import Status
from midstream.gateway.sessions import upkeep
from midstream.store import servers


def test_a_silent_trajectory_is_closed_and_its_group_is_ready(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=30)
    silent, never = (served.open(prompt_uid="p", group_size=2) for _ in range(2))
    silent.chat()
    clock.advance(29)
    assert served.close_silent() == 0
    clock.advance_until(lambda: served.store.groups.counts()["ready"] == 1, 1.0)
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    assert {t.uid: (t.status, len(t.steps), t.error) for t in group.trajectories} == {
        silent.uid: ("timed_out", 1, "silent for more than 30 s"),
        never.uid: ("timed_out", 0, "silent for more than 30 s"),
    }
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="silent"}') == 1
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="never_called"}') == 1
    assert error(silent.chat())[1] == "trajectory_ended"


def test_heartbeats_and_long_calls_keep_a_trajectory_open(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=40, engine_latency_s=100)
    beating, calling, silent = served.open(), served.open(), served.open()
    with ThreadPoolExecutor(1) as pool:
        long_call = pool.submit(calling.chat)
        until(lambda: served.gateway.admission.running == 1)
        for _ in range(8):
            assert served.post(f"/trajectories/{beating.uid}/heartbeat").status_code == 200
            clock.advance(10)
            served.close_silent()
        clock.advance_until(long_call.done, 1.0)
        assert long_call.result().status_code == 200
    assert error(silent.chat())[1] == "trajectory_ended"


def test_a_trajectory_that_cannot_be_closed_does_not_keep_others_open(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=30)
    ended_elsewhere, other = served.open(), served.open()
    ended = replace(served.trajectory(ended_elsewhere.uid), status=Status.COMPLETED)
    asyncio.run(served.store.trajectories.finish(ended))
    clock.advance_until(lambda: len(served.gateway.trajectories) == 0, 1.0)
    assert served.trajectory(other.uid).status == "timed_out"
    assert served.trajectory(ended_elsewhere.uid).error == ""


def test_a_trajectory_open_at_a_restart_expires(start: Start, clock: MovedClock) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    served.stop()
    served = start(expiry_s=30)
    assert served.metric("midstream_trajectories_open") == 1
    clock.advance_until(lambda: served.trajectory(opened.uid).status == "timed_out", 1.0)
    assert len(served.trajectory(opened.uid).steps) == 1
    assert served.metric("midstream_trajectories_open") == 0


def test_gateways_with_one_store_do_not_close_each_others_trajectories(start: Start, clock: MovedClock) -> None:
    # The other gateway never heard of this agent, and would close the trajectory after 3 s.
    theirs = (one := start(name="one")).open()
    theirs.chat()
    own = (other := start(name="other", expiry_s=3)).open()
    assert other.metric("midstream_trajectories_open") == 1
    clock.advance_until(lambda: other.trajectory(own.uid).status == "timed_out")
    assert one.trajectory(theirs.uid).status == "running"
    assert theirs.chat().status_code == 200 and theirs.complete(reward=1.0).status_code == 200
    assert one.trajectory(theirs.uid).status == "completed"


def test_an_agent_at_the_wrong_gateway_is_refused_with_the_right_name(start: Start) -> None:
    one, other = start(name="one"), start(name="other")
    opened = one.open()
    opened.chat()
    stray = Opened(other, opened.told)
    heartbeat = other.post(f"/trajectories/{opened.uid}/heartbeat")
    for answer in (refused := stray.chat(), stray.complete(), heartbeat, stray.post("/register_trajectory", {})):
        status, code, told = error(answer)
        assert (status, code) == (503, "held_elsewhere") and "belongs to the gateway 'one'" in told
    assert error(other.post("/init_trajectory", {"trajectory_uid": opened.uid}))[1] == "held_elsewhere"
    assert int(refused.headers["retry-after"]) >= 1
    # Any gateway can describe it.
    assert other.client.get(f"/trajectories/{opened.uid}").json()["steps"] == 1
    assert opened.chat().status_code == 200 and len(opened.steps) == 2


def test_trajectories_of_a_dead_gateway_continue_at_another(
    start: Start, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = start(name="dead")
    opened, silent = dead.open(), dead.open()
    first = opened.say(HELLO)
    monkeypatch.setattr(dead.gateway.upkeep, "beat", lambda: asyncio.sleep(0))  # as if it hung
    other = start(name="other", expiry_s=300)
    clock.advance_until(lambda: other.metric("midstream_trajectories_adopted_total") == 2, 1.0)
    stray = Opened(other, opened.told)
    stray.say([*first, {"role": "user", "content": "And then?"}])
    assert [step.parent for step in stray.steps] == [None, 0]
    assert error(opened.chat())[0] == 503  # it is alive, but no longer holds the trajectory
    assert len(stray.steps) == 2
    clock.advance_until(lambda: other.trajectory(silent.uid).status == "timed_out", 1.0)


@pytest.fixture
def taken_over(start: Start, clock: MovedClock, monkeypatch: pytest.MonkeyPatch) -> tuple[Served, Served, Opened]:
    """A gateway that was silent until another adopted its trajectory, the other one, and the trajectory."""
    monkeypatch.setattr(upkeep, "BEAT_S", 3600)  # the test sends the heartbeats
    slow, other = start(name="slow"), start(name="other")
    opened = slow.open()
    clock.advance(servers.DEAD_AFTER_S + 1)
    assert other.store.servers.beat().adopted == [opened.uid]
    return slow, other, opened


def test_a_gateway_presumed_dead_evicts_what_another_took_over(
    taken_over: tuple[Served, Served, Opened],
) -> None:
    slow, _, opened = taken_over
    kept = slow.open()
    slow.in_loop(slow.gateway.upkeep.beat())
    assert set(slow.gateway.trajectories.in_memory) == {kept.uid}
    assert error(opened.chat())[1] == "held_elsewhere"
    assert kept.chat().status_code == 200


def test_a_gateway_that_regains_its_trajectories_counts_them_once(taken_over: tuple[Served, Served, Opened]) -> None:
    slow, other, opened = taken_over
    other.store.servers.leave()
    slow.in_loop(slow.gateway.upkeep.beat())
    assert len(slow.gateway.trajectories) == 1 and slow.gateway.upkeep.adopted == 0
    assert opened.chat().status_code == 200


def test_of_two_gateways_with_one_name_only_the_second_continues(start: Start, clock: MovedClock) -> None:
    first = start(name="same")
    opened = first.open()
    second = start(name="same")
    clock.advance_until(lambda: first.client.get("/ready").status_code == 503, 1.0)
    assert "joined this store as 'same'" in first.client.get("/ready").json()["status"]
    assert error(opened.chat())[0] == 503 and opened.steps == ()
    assert Opened(second, opened.told).chat().status_code == 200


def test_idle_trajectories_leave_memory_and_are_restored(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=2 * upkeep.IDLE_S)
    many = [served.open() for _ in range(5)]
    for opened in many:
        opened.chat()
    live = served.gateway.trajectories.in_memory
    clock.advance(upkeep.IDLE_S - 1)
    assert served.close_silent() == 0 and len(live) == 5
    clock.advance(2)
    assert served.close_silent() == 0 and not live
    assert served.metric("midstream_trajectories_open") == 5
    assert served.engine._answered == {}
    again = many[0].say([*HELLO, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Go on."}])
    assert again and many[0].steps[1].parent == 0


def test_abandoned_trajectories_leave_no_trace_in_memory(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=30)

    async def abandon(count: int) -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=LIMIT_S) as client:
            for first in range(0, count, 50):
                await asyncio.gather(*(client.post("/init_trajectory") for _ in range(min(50, count - first))))

    asyncio.run(abandon(200))
    own = served.gateway.trajectories
    clock.advance_until(lambda: not len(own), 1.0)
    assert (len(own.in_memory), len(own.evicted), len(own.locks._locks)) == (0, 0, 0)
    assert served.store.trajectories.count(status="timed_out") == 200  # pyright: ignore[reportArgumentType]
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="never_called"}') == 200
