"""How a trajectory begins, goes on over a restart, and ends once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, Served, error
from tests.waiting import MovedClock, until

from midstream.core.types import Status
from midstream.gateway import service
from midstream.gateway.sessions import trajectories
from midstream.store import servers


def test_a_trajectory_is_on_disk_before_its_opening_is_answered(start: Start) -> None:
    served = start()
    task = {"id": "t-1", "prompt": "What is 1 + 1?", "answer": 2, "level": "easy"}
    opened = served.open(
        trajectory_uid="my.own:name", prompt_uid="q-1", channel="val", group_size=2, task=task, metadata={"run": 7}
    )
    assert (opened.uid, opened.prompt_uid, opened.told["channel"]) == ("my.own:name", "q-1", "val")
    assert opened.told["base_url"] == f"{served.url}/my.own:name/q-1/v1"
    found = served.store.trajectories.find("my.own:name")
    assert found is not None and found.channel == "val" and found.trajectory.status == "running"
    assert (found.trajectory.task.id, found.trajectory.task.answer) == ("t-1", 2)
    assert found.trajectory.task.metadata == {"run": 7, "level": "easy"}


def test_opened_again_by_uid_or_key_it_is_the_same_one(start: Start) -> None:
    served = start()
    first = served.open(trajectory_uid="a", prompt_uid="p")
    first.chat()
    again = served.open(trajectory_uid="a")
    assert again.prompt_uid == "p" and len(again.steps) == 1
    by_key = [served.post("/init_trajectory", {}, Idempotency_Key="k").json() for _ in range(2)]
    assert by_key[0]["trajectory_uid"] == by_key[1]["trajectory_uid"] != "a"
    assert error(served.post("/init_trajectory", {"trajectory_uid": "a", "prompt_uid": "q"}))[0] == 409
    first.complete()
    assert error(served.post("/init_trajectory", {"trajectory_uid": "a"}))[1] == "trajectory_ended"


def test_opened_by_many_at_once_it_is_begun_once(start: Start) -> None:
    served = start()

    async def together() -> list[Any]:
        async with httpx.AsyncClient(base_url=served.url) as client:
            body = {"trajectory_uid": "same"}
            paths = [("/init_trajectory", body), ("/trajectories/same/heartbeat", None)] * 8
            return await asyncio.gather(*(client.post(path, json=body) for path, body in paths))

    told = [answer.json() for answer in asyncio.run(together())]
    assert len({one["prompt_uid"] for one in told if "prompt_uid" in one}) == 1
    assert served.gateway.trajectories.opened == 1


def test_register_adds_what_is_known_and_begins_what_is_not_there(start: Start) -> None:
    served = start()
    opened = served.open(task={"answer": 4, "level": "hard"})
    body = {"task": {"prompt": "2 + 2?"}, "metadata": {"seed": 1}, "channel": "val"}
    assert opened.post("/register_trajectory", body).status_code == 200
    task = served.trajectory(opened.uid).task
    assert (task.prompt, task.answer, task.metadata["level"]) == ("2 + 2?", 4, "hard")
    opened.chat()
    assert error(opened.post("/register_trajectory", {"channel": "train"}))[0] == 409
    assert served.post("/new/group-1/v1/register_trajectory", {"channel": "online"}).status_code == 200
    found = served.store.trajectories.find("new")
    assert found is not None and (found.channel, found.trajectory.prompt_uid) == ("online", "group-1")


@pytest.mark.parametrize("by_uid", [True, False])
def test_it_is_completed_once_by_either_endpoint(start: Start, by_uid: bool) -> None:
    served = start("It is 4.")
    opened = served.open()
    opened.chat()
    path = f"/complete_trajectory/{opened.uid}" if by_uid else f"{opened.path}/complete_trajectory"
    told = served.post(path, {"reward": 1.5, "rewards": {"right": 1.0, "short": 0.5}})
    assert told.status_code == 200
    assert told.json() | {"trajectory_uid": "", "prompt_uid": ""} == {
        "status": "ok",
        "trajectory_uid": "",
        "prompt_uid": "",
        "state": "completed",
        "steps": 1,
        "branches": 0,
        "answer": "It is 4.",
        "reward": 1.5,
        "rewards": {"given": 1.5, "right": 1.0, "short": 0.5},
        "error": "",
    }
    assert error(served.post(path, {"reward": 0.0}))[:2] == (409, "trajectory_ended")
    assert error(opened.chat())[:2] == (409, "trajectory_ended")
    kept = served.trajectory(opened.uid)
    assert (kept.reward, kept.status, kept.steps[-1].is_last) == (1.5, "completed", True)


def test_completing_again_with_the_same_key_gets_the_same_answer_also_after_a_restart(start: Start) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    first = opened.post("/complete_trajectory", {"reward": 0.5}, Idempotency_Key="end")
    again = opened.post("/complete_trajectory", {"reward": 0.9}, Idempotency_Key="end")
    assert first.status_code == 200 and first.json() == again.json()
    assert error(opened.post("/complete_trajectory", {}, Idempotency_Key="other"))[0] == 409
    served.stop()
    opened.served = start()
    assert opened.post("/complete_trajectory", {"reward": 0.5}, Idempotency_Key="end").json() == first.json()


def test_a_failed_agent_says_so_and_its_trajectory_keeps_what_it_did(start: Start) -> None:
    opened = (served := start()).open()
    opened.chat()
    assert opened.complete(status="failed", error="the tool broke").json()["state"] == "failed"
    kept = served.trajectory(opened.uid)
    assert (kept.status, kept.error, kept.reward, len(kept.steps)) == ("failed", "the tool broke", None, 1)


def test_rewards_that_do_not_add_up_to_a_number_are_refused_and_it_stays_open(start: Start) -> None:
    opened = start().open()
    step = {"trajectory_uid": opened.uid, "prompt_uid": opened.prompt_uid, "prompt_ids": [1], "response_ids": [2]}
    steps = [{**step, "step_index": index, "response_ids": [index], "reward": 1e308} for index in range(2)]
    assert error(opened.served.post("/submit_steps", {"steps": steps}))[0] == 400
    for body in ('{"reward": NaN}', '{"reward": 1e999}', '{"rewards": {"a": -Infinity}}'):
        raw = opened.served.client.post(f"{opened.path}/complete_trajectory", content=body)
        assert error(raw)[0] == 400, body
    assert opened.complete(reward=1.0).status_code == 200


def test_a_silent_agent_is_closed_and_its_group_is_ready(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=30)
    silent, never = (served.open(prompt_uid="p", group_size=2) for _ in range(2))
    silent.chat()
    clock.advance(29)
    assert served.closed_as_silent() == 0
    clock.advance_until(lambda: served.store.groups.counts()["ready"] == 1, 1.0)
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    assert {t.uid: (t.status, len(t.steps), t.error) for t in group.trajectories} == {
        silent.uid: ("timed_out", 1, "silent for more than 30 s"),
        never.uid: ("timed_out", 0, "silent for more than 30 s"),
    }
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="silent"}') == 1
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="never_called"}') == 1
    assert error(silent.chat())[1] == "trajectory_ended"


def test_heartbeats_and_calls_that_take_long_keep_it(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=40, engine_latency_s=100)
    beating, calling, silent = served.open(), served.open(), served.open()
    with ThreadPoolExecutor(1) as pool:
        long_call = pool.submit(calling.chat)
        until(lambda: served.gateway.gate.inside == 1)
        for _ in range(8):
            assert served.post(f"/trajectories/{beating.uid}/heartbeat").status_code == 200
            clock.advance(10)
            served.closed_as_silent()
        clock.advance_until(long_call.done, 1.0)
        assert long_call.result().status_code == 200
    assert error(silent.chat())[1] == "trajectory_ended"


def test_one_that_cannot_be_closed_does_not_keep_others_open(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=30)
    ended_elsewhere, other = served.open(), served.open()
    ended = replace(served.trajectory(ended_elsewhere.uid), status=Status.COMPLETED)
    asyncio.run(served.store.trajectories.finish(ended))
    clock.advance_until(lambda: len(served.gateway.trajectories) == 0, 1.0)
    assert served.trajectory(other.uid).status == "timed_out"
    assert served.trajectory(ended_elsewhere.uid).error == ""


def test_a_step_that_comes_after_the_end_is_kept_flagged_and_not_trained_on(start: Start, clock: MovedClock) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    served.engine.latency_s = 1.0
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(opened.chat, [{"role": "user", "content": "And then?"}])
        until(lambda: served.gateway.gate.inside == 1)
        assert opened.complete(reward=1.0).status_code == 200
        clock.advance_until(late.done)
        assert late.result().status_code == 200
    first, second = opened.steps
    assert "late" not in first.metadata and first.trainable
    assert second.metadata["late"] and not second.trainable
    assert served.metric("midstream_late_steps_total") == 1


def test_a_conversation_goes_on_over_a_restart_with_the_exact_tokens(start: Start) -> None:
    # Text that a tokenizer would cut otherwise than the engine did must come back as it was sampled.
    served = start(["Hi  there ", "fine", "bye"])
    opened = served.open(task={"answer": 3}, metadata={"m": [1]})
    messages = [*opened.say(HELLO), {"role": "user", "content": "How?"}]
    served.stop()
    opened.served = served = start(lambda request: "fine")
    messages = [*opened.say(messages), {"role": "user", "content": "Bye."}]
    opened.say(messages)
    first, second, third = opened.steps
    assert (second.parent, third.parent, second.branch_reason + third.branch_reason) == (0, 1, "")
    assert second.prompt_ids[: len(first.prompt_ids + first.response_ids)] == first.prompt_ids + first.response_ids
    assert third.prompt_ids[: len(second.prompt_ids + second.response_ids)] == second.prompt_ids + second.response_ids
    assert opened.complete().json()["steps"] == 3
    kept = served.trajectory(opened.uid)
    assert (kept.task.answer, kept.metadata) == (3, {"m": [1]})


def test_what_was_open_at_a_restart_expires_like_any_other(start: Start, clock: MovedClock) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    served.stop()
    served = start(expiry_s=30)
    assert served.metric("midstream_trajectories_open") == 1
    clock.advance_until(lambda: served.trajectory(opened.uid).status == "timed_out", 1.0)
    assert len(served.trajectory(opened.uid).steps) == 1
    assert served.metric("midstream_trajectories_open") == 0


def test_gateways_that_share_a_store_leave_each_others_trajectories_alone(start: Start, clock: MovedClock) -> None:
    # One has heard of its agent all along; the other never has, and would close it after 3 s.
    theirs = (one := start(name="one")).open()
    theirs.chat()
    own = (other := start(name="other", expiry_s=3)).open()
    assert other.metric("midstream_trajectories_open") == 1
    clock.advance_until(lambda: other.trajectory(own.uid).status == "timed_out")
    assert one.trajectory(theirs.uid).status == "running"
    assert theirs.chat().status_code == 200 and theirs.complete(reward=1.0).status_code == 200
    assert one.trajectory(theirs.uid).status == "completed"


def test_an_agent_at_the_wrong_gateway_is_told_where_to_go_and_nothing_is_recorded(start: Start) -> None:
    one, other = start(name="one"), start(name="other")
    opened = one.open()
    opened.chat()
    stray = Opened(other, opened.told)
    heartbeat = other.post(f"/trajectories/{opened.uid}/heartbeat")
    for answer in (refused := stray.chat(), stray.complete(), heartbeat, stray.post("/register_trajectory", {})):
        status, code, told = error(answer)
        assert (status, code) == (503, "held_elsewhere") and "is with the gateway 'one'" in told
    assert error(other.post("/init_trajectory", {"trajectory_uid": opened.uid}))[1] == "held_elsewhere"
    assert int(refused.headers["retry-after"]) >= 1
    # What is known of it may be asked anywhere.
    assert other.client.get(f"/trajectories/{opened.uid}").json()["steps"] == 1
    assert opened.chat().status_code == 200 and len(opened.steps) == 2


def test_what_a_dead_gateway_left_behind_goes_on_at_another_and_is_closed_when_silent(
    start: Start, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = start(name="dead")
    opened, silent = dead.open(), dead.open()
    first = opened.say(HELLO)
    monkeypatch.setattr(dead.gateway.trajectories, "beat", lambda: asyncio.sleep(0))  # as if it hung
    other = start(name="other", expiry_s=300)
    clock.advance_until(lambda: other.metric("midstream_trajectories_adopted_total") == 2, 1.0)
    stray = Opened(other, opened.told)
    stray.say([*first, {"role": "user", "content": "And then?"}])
    assert [step.parent for step in stray.steps] == [None, 0]
    assert error(opened.chat())[0] == 503  # it was not dead after all, but nothing it does counts any more
    assert len(stray.steps) == 2
    clock.advance_until(lambda: other.trajectory(silent.uid).status == "timed_out", 1.0)


@pytest.fixture
def taken_over(start: Start, clock: MovedClock, monkeypatch: pytest.MonkeyPatch) -> tuple[Served, Served, Opened]:
    """A gateway that was not heard of for so long that another adopted its trajectory; that trajectory."""
    monkeypatch.setattr(service, "BEAT_S", 3600)  # each says that it lives when the test says so
    slow, other = start(name="slow"), start(name="other")
    opened = slow.open()
    clock.advance(servers.DEAD_AFTER_S + 1)
    assert other.store.servers.beat().adopted == [opened.uid]
    return slow, other, opened


def test_a_gateway_that_was_taken_for_dead_forgets_what_another_took_over(
    taken_over: tuple[Served, Served, Opened],
) -> None:
    slow, _, opened = taken_over
    kept = slow.open()
    slow.in_loop(slow.gateway.trajectories.beat())
    assert set(slow.gateway.trajectories._live) == {kept.uid}
    assert error(opened.chat())[1] == "held_elsewhere"
    assert kept.chat().status_code == 200


def test_a_gateway_that_gets_back_what_it_lost_counts_it_once(taken_over: tuple[Served, Served, Opened]) -> None:
    slow, other, opened = taken_over
    other.store.servers.leave()
    slow.in_loop(slow.gateway.trajectories.beat())
    assert len(slow.gateway.trajectories) == 1 and slow.gateway.trajectories.adopted == 0
    assert opened.chat().status_code == 200


def test_two_gateways_of_one_name_are_told_and_only_the_second_goes_on(start: Start, clock: MovedClock) -> None:
    first = start(name="same")
    opened = first.open()
    second = start(name="same")
    clock.advance_until(lambda: first.client.get("/ready").status_code == 503, 1.0)
    assert "joined this store as 'same'" in first.client.get("/ready").json()["status"]
    assert error(opened.chat())[0] == 503 and opened.steps == ()
    assert Opened(second, opened.told).chat().status_code == 200


def test_idle_trajectories_leave_memory_and_come_back(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=2 * trajectories.IDLE_S)
    many = [served.open() for _ in range(5)]
    for opened in many:
        opened.chat()
    live = served.gateway.trajectories._live
    clock.advance(trajectories.IDLE_S - 1)
    assert served.closed_as_silent() == 0 and len(live) == 5
    clock.advance(2)
    assert served.closed_as_silent() == 0 and not live
    assert served.metric("midstream_trajectories_open") == 5
    assert served.engine._answered == {}
    again = many[0].say([*HELLO, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Go on."}])
    assert again and many[0].steps[1].parent == 0


def test_a_group_with_a_failed_a_slow_and_a_never_calling_agent_is_trained_on(start: Start, clock: MovedClock) -> None:
    served = start(group_size=3, expiry_s=60)
    failed, slow, never = (served.open(prompt_uid="p") for _ in range(3))
    failed.chat()
    failed.complete(status="failed", error="crashed")
    for _ in range(5):
        slow.chat()  # takes longer than a silent agent may, and is not silent
        clock.advance(20)
        served.closed_as_silent()
    slow.complete(reward=1.0)
    assert served.store.groups.counts()["ready"] == 1
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    assert [(t.uid, t.status, len(t.steps)) for t in group.trajectories] == [
        (failed.uid, "failed", 1),
        (slow.uid, "completed", 5),
        (never.uid, "timed_out", 0),
    ]
    ended = 'midstream_trajectories_ended_total{status="%s",why="%s"}'
    for status, why in (("failed", "agent"), ("completed", "agent"), ("timed_out", "never_called")):
        assert served.metric(ended % (status, why)) == 1
    assert served.metric('midstream_groups{state="leased"}') == 1


def test_whoever_comes_too_late_for_a_group_is_told_and_counted(start: Start) -> None:
    served = start(group_size=2)
    first, second = (served.open(prompt_uid="p") for _ in range(2))
    body = {"prompt_uid": "p"}
    status, code, told = error(served.post("/init_trajectory", body))
    assert (status, code) == (409, "group_closed")
    assert "has all its 2 trajectories" in told and "open it under another prompt_uid" in told
    for opened in (first, second):
        opened.complete(reward=1.0)
    assert served.store.groups.lease("trainer", 1, "train", 60)
    step = {"prompt_ids": [1], "response_ids": [2], "trajectory_uid": "new", "prompt_uid": "p", "step_index": 0}
    for path, late in (
        ("/init_trajectory", body),
        ("/new/p/v1/register_trajectory", {}),
        ("/generate", {"messages": HELLO, "trajectory_uid": "new", "prompt_uid": "p"}),
        ("/submit_steps", {"steps": [step]}),
    ):
        assert "is being trained on" in error(served.post(path, late))[2], path
    moves = served.open(prompt_uid="p", channel="online")
    assert error(moves.post("/register_trajectory", {"channel": "train"}))[1] == "group_closed"
    assert moves.chat().status_code == 200
    assert moves.complete(channel="online").status_code == 200
    assert served.metric("midstream_openings_refused_total") == 6
    assert served.store.groups.left_out() == 0


def test_a_group_that_is_due_does_not_wait_for_its_straggler_who_is_told(start: Start, clock: MovedClock) -> None:
    served = start(group_size=2, group_timeout_s=60)
    quick, slow = (served.open(prompt_uid="p") for _ in range(2))
    slow.chat()
    quick.complete(reward=1.0)
    clock.advance(59)
    assert not served.store.groups.lease("trainer", 1, "train", 60)
    clock.advance(2)
    assert served.store.groups.lease("trainer", 1, "train", 60)
    slow.chat()
    assert error(slow.complete(reward=1.0))[:2] == (409, "trajectory_ended")
    assert served.trajectory(slow.uid).status == "timed_out"
    assert [bool(step.metadata.get("late")) for step in slow.steps] == [False, True]
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="group_deadline"}') == 1
    assert len(served.gateway.trajectories) == 0
