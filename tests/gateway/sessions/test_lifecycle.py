"""A trajectory is opened, continues after a restart, and ends once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, error
from tests.waiting import MovedClock, until


def test_a_trajectory_is_on_disk_before_its_opening_is_acknowledged(start: Start) -> None:
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


def test_opening_again_by_uid_or_key_returns_the_same_trajectory(start: Start) -> None:
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


def test_concurrent_openings_create_one_trajectory(start: Start) -> None:
    served = start()

    async def together() -> list[Any]:
        async with httpx.AsyncClient(base_url=served.url) as client:
            body = {"trajectory_uid": "same"}
            paths = [("/init_trajectory", body), ("/trajectories/same/heartbeat", None)] * 8
            return await asyncio.gather(*(client.post(path, json=body) for path, body in paths))

    told = [answer.json() for answer in asyncio.run(together())]
    assert len({one["prompt_uid"] for one in told if "prompt_uid" in one}) == 1
    assert served.gateway.trajectories.opened == 1


def test_register_adds_to_a_trajectory_or_opens_it(start: Start) -> None:
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
def test_a_trajectory_is_completed_once_by_either_endpoint(start: Start, by_uid: bool) -> None:
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


def test_completing_again_with_the_same_key_is_replayed_even_after_a_restart(start: Start) -> None:
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


def test_a_failed_trajectory_keeps_its_steps(start: Start) -> None:
    opened = (served := start()).open()
    opened.chat()
    assert opened.complete(status="failed", error="the tool broke").json()["state"] == "failed"
    kept = served.trajectory(opened.uid)
    assert (kept.status, kept.error, kept.reward, len(kept.steps)) == ("failed", "the tool broke", None, 1)


def test_rewards_whose_sum_overflows_keep_the_trajectory_open(start: Start) -> None:
    opened = start().open()
    step = {"trajectory_uid": opened.uid, "prompt_uid": opened.prompt_uid, "prompt_ids": [1], "response_ids": [2]}
    steps = [{**step, "step_index": index, "response_ids": [index], "reward": 1e308} for index in range(2)]
    assert error(opened.served.post("/submit_steps", {"steps": steps}))[0] == 400
    for body in ('{"reward": NaN}', '{"reward": 1e999}', '{"rewards": {"a": -Infinity}}'):
        raw = opened.served.client.post(f"{opened.path}/complete_trajectory", content=body)
        assert error(raw)[0] == 400, body
    assert opened.complete(reward=1.0).status_code == 200


def test_a_step_after_the_end_is_late_and_not_trained_on(start: Start, clock: MovedClock) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    served.engine.latency_s = 1.0
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(opened.chat, [{"role": "user", "content": "And then?"}])
        until(lambda: served.gateway.admission.running == 1)
        assert opened.complete(reward=1.0).status_code == 200
        clock.advance_until(late.done)
        assert late.result().status_code == 200
    first, second = opened.steps
    assert "late" not in first.metadata and first.trainable
    assert second.metadata["late"] and not second.trainable
    assert served.metric("midstream_late_steps_total") == 1


def test_a_conversation_continues_after_a_restart_with_the_exact_tokens(start: Start) -> None:
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
