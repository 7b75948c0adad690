"""White-box agents: /generate, submitted steps, computed rewards, and feedback."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Served, error
from tests.waiting import MovedClock

from midstream.core.errors import RunError


def payload(uid: str = "t", index: int = 0, **more: Any) -> dict[str, Any]:
    step = {"trajectory_uid": uid, "prompt_uid": "p", "step_index": index, "prompt_ids": [5, 6], "response_ids": [7, 8]}
    return {**step, "rollout_log_probs": [-0.5, -1.0], **more}


def submit(served: Served, *steps: dict[str, Any], channel: str = "train") -> httpx.Response:
    return served.post(f"/submit_steps?channel={channel}", {"steps": list(steps)})


def accepted(served: Served, *steps: dict[str, Any]) -> int:
    response = submit(served, *steps)
    assert response.status_code == 200, response.text
    return response.json()["accepted"]


def generate(served: Served, **asked: Any) -> dict[str, Any]:
    response = served.post("/generate", asked)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_step_sampled_here_takes_the_submitted_reward_and_metadata(start: Start) -> None:
    served = start("It is 4.")
    told = generate(served, trajectory_uid="t", prompt_uid="p", messages=HELLO, max_tokens=100)
    assert told["response_text"] == "It is 4."
    before = served.steps("t")[0]
    own = payload(prompt_ids=told["prompt_ids"], response_ids=told["response_ids"], rollout_log_probs=None)
    assert accepted(served, {**own, "reward": 0.5, "metadata": {"note": [1]}, "is_last": True}) == 1
    (kept,) = served.steps("t")
    assert (kept.reward, kept.metadata["note"], kept.rollout_log_probs) == (0.5, [1], before.rollout_log_probs)
    assert kept.trainable and (kept.prompt_ids, kept.response_ids) == (before.prompt_ids, before.response_ids)
    trajectory = served.trajectory("t")
    assert (trajectory.status, trajectory.reward) == ("completed", 0.5)


def test_steps_sampled_elsewhere_are_recorded_unchanged(start: Start) -> None:
    served = start()
    second = payload(index=1, prompt_ids=[5, 6, 7, 8, 9], response_ids=[3], rollout_log_probs=[-0.1])
    assert accepted(served, payload(reward=1.0), {**second, "is_last": True, "reward": 0.5}) == 2
    trajectory = served.trajectory("t")
    assert [(s.prompt_ids, s.response_ids, s.parent, s.trainable) for s in trajectory.steps] == [
        ((5, 6), (7, 8), None, True),
        ((5, 6, 7, 8, 9), (3,), 0, True),
    ]
    assert (trajectory.status, trajectory.reward) == ("completed", 1.5)


def test_a_step_without_log_probabilities_is_not_trainable(start: Start) -> None:
    served = start()
    assert accepted(served, payload(rollout_log_probs=None)) == 1
    assert not served.steps("t")[0].trainable


def test_a_step_submitted_twice_counts_once(start: Start) -> None:
    served = start()
    assert accepted(served, payload(), payload()) == 1
    assert accepted(served, payload()) == 0
    last = payload(index=1, prompt_ids=[1], is_last=True)
    assert accepted(served, last) == 1
    assert accepted(served, last) == 0 and accepted(served, payload()) == 0
    assert len(served.steps("t")) == 2


def test_of_concurrent_submissions_one_gets_the_index(start: Start) -> None:
    served = start()
    served.open(trajectory_uid="t", prompt_uid="p")

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
            bodies = [{"steps": [payload(response_ids=[7, 8 + number])]} for number in range(8)]
            return await asyncio.gather(*(client.post("/submit_steps", json=body) for body in bodies))

    answers = asyncio.run(together())
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    (winner,) = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert [step.response_ids for step in served.steps("t")] == [(7, 8 + winner)]


def test_another_step_with_a_used_or_reserved_index_is_refused(start: Start) -> None:
    served = start(engine_latency_s=0.4)
    opened = served.open(trajectory_uid="t", prompt_uid="p")
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(opened.chat)
        while not served.gateway.admission.running:
            pass
        assert error(submit(served, payload()))[:2] == (409, "conflict")
        under_way.result()
    assert error(submit(served, payload()))[0] == 409
    assert [step.text for step in opened.steps] == ["Hello."]


def test_skipped_indices_can_be_filled_later(start: Start) -> None:
    served = start()
    assert accepted(served, payload(index=3)) == 1
    assert accepted(served, payload(index=1, prompt_ids=[9])) == 1
    assert served.open(trajectory_uid="t").chat().status_code == 200
    assert [step.step_index for step in served.steps("t")] == [1, 3, 4]


def test_a_step_after_completion_is_refused_and_after_a_timeout_late(start: Start) -> None:
    served = start(group_size=2)
    accepted(served, payload(is_last=True), payload("timed", reward=1.0))
    assert error(submit(served, payload(index=1, prompt_ids=[1])))[:2] == (409, "trajectory_ended")
    served.post("/complete_trajectory/timed", {"status": "timed_out"})
    late = payload("timed", 1, prompt_ids=[1], reward=5.0)
    assert accepted(served, late) == 1 and accepted(served, late) == 0
    kept = served.trajectory("timed")
    assert [(s.metadata.get("late"), s.trainable) for s in kept.steps] == [(None, True), (True, False)]
    assert kept.reward == 1.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rollout_log_probs": [-0.5]}, "2 response_ids but 1 rollout_log_probs"),
        ({"rollout_log_probs": [-0.5, 0.2]}, "finite and at most 0"),
        ({"prompt_ids": [-1]}, "-1 is not a token of tiny"),
        ({"response_ids": [7, 10**30]}, "is not a token of tiny"),
        ({"response_ids": [7, 10**7]}, "10000000 is not a token of tiny"),
        ({"response_ids": [7.5, 8]}, "response_ids"),
        ({"step_index": -1}, "step_index"),
        ({"step_index": 10**9}, "step_index"),
        ({"policy_version": 2**40}, "policy_version"),
        ({"temperature": 0}, "temperature"),
        ({"role": "a\nb"}, "role"),
        ({"prompt_uid": "../x"}, "prompt_uid"),
        ({"trajectory_uid": "'; DROP TABLE steps; --"}, "trajectory_uid"),
        ({"metadata": {"stop": 5}}, "'stop' is a key of the gateway; choose another name"),
        ({"metadata": {"sampling": "greedy"}}, "'sampling' is an object that tells how sampling was altered"),
        ({"metadata": {"sampling": {"top_q": 1}}}, "with some of greedy, constraint, top_p"),
        ({"metadata": {"a": json.loads("[" * 70 + "]" * 70)}}, "nested more than 64 deep"),
        ({"is_the_last": True}, "'steps.1.is_the_last' is not an argument this server honours"),
    ],
)
def test_an_invalid_step_is_refused_by_name_with_the_whole_request(
    start: Start, wrong: dict[str, Any], told: str
) -> None:
    served = start()
    status, _, message = error(submit(served, payload(), payload(index=1, **wrong)))
    assert status == 400 and told in message
    assert served.store.trajectories.count() == 0


def test_generate_by_ids_without_a_trajectory_records_nothing(start: Start) -> None:
    served = start("Yes")
    told = generate(served, prompt_ids=[5, 6], sampling_params={"max_tokens": 2, "temperature": 0.5})
    assert len(told["token_ids"]) == len(told["log_probs"]) == 2 and told["prompt_ids"] == [5, 6]
    assert told["stop_reason"] == "length" and served.store.trajectories.count() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("role", "planner"),
        ("role", "policy"),
        ("prompt_uid", "p"),
        ("tools", [{"type": "function", "function": {"name": "look"}}]),
    ],
)
def test_arguments_that_need_a_trajectory_are_refused_without_one(start: Start, name: str, value: Any) -> None:
    served = start()
    status, _, told = error(served.post("/generate", {"prompt_ids": [5, 6], name: value}))
    assert status == 400 and f"{name} needs a trajectory_uid" in told
    served.open(trajectory_uid="t", prompt_uid="p")
    assert served.post("/generate", {"prompt_ids": [5, 6], "trajectory_uid": "t", name: value}).status_code == 200
    assert served.post("/generate", {"prompt_ids": [5, 6], "tools": None}).status_code == 200


def test_an_idempotency_key_needs_a_trajectory(start: Start) -> None:
    status, _, told = error(start().post("/generate", {"prompt_ids": [5, 6]}, Idempotency_Key="k"))
    assert status == 400 and "Idempotency-Key needs a trajectory_uid" in told


def test_generate_takes_each_argument_in_one_place(start: Start) -> None:
    served = start()
    for body, wanted in (
        ({"prompt_ids": [5], "messages": HELLO}, "give either prompt_ids or messages"),
        ({}, "give either prompt_ids or messages"),
        ({"prompt_ids": [5], "sampling_params": {}, "max_tokens": 3}, "max_tokens is beside sampling_params"),
        ({"messages": HELLO}, "messages need a trajectory_uid"),
        ({"prompt_ids": [5], "image_data": "x"}, "'image_data' is not an argument"),
        ({"prompt_ids": [5], "model": "gpt-5"}, "there is no model 'gpt-5'; this gateway serves tiny"),
        ({"prompt_ids": [5], "temperature": -1}, "temperature must not be negative"),
        ({"prompt_ids": [5], "seed": 10**30}, "seed is too large"),
        ({"prompt_ids": [5], "stop": ["a", ""]}, "an empty stop string"),
    ):
        status, _, message = error(served.post("/generate", body))
        assert status in (400, 404) and wanted in message, body


def test_a_reward_is_computed_from_the_record_messages_or_ids(start: Start) -> None:
    served = start("4", reward={})
    opened = served.open(task={"answer": 4})
    opened.chat()
    five = served.gateway.tokenizer.encode("5")

    def score(**asked: Any) -> float:
        response = served.post("/compute_reward", {"trajectory_uid": opened.uid, **asked})
        assert response.status_code == 200, response.text
        return response.json()["reward_score"]

    assert score() == 1.0
    assert score(messages=[*HELLO, {"role": "assistant", "content": "5"}]) == 0.0
    assert score(response_ids=list(five)) == 0.0
    assert score(response_ids=list(five), dataset_fields={"answer": "5"}) == 1.0
    assert opened.complete().json()["reward"] == 1.0


def test_compute_reward_needs_a_reward_function(start: Start) -> None:
    assert error(start().post("/compute_reward", {"response_ids": [1]}))[:2] == (503, "no_reward")


def test_feedback_and_curation_reach_training_and_invalid_ones_are_refused(start: Start) -> None:
    served = start()
    opened = served.open(group_size=1)
    opened.chat()
    opened.chat()
    path = f"/trajectories/{opened.uid}"
    for _ in range(2):
        assert served.post(f"{path}/feedback", {"kind": "thumbs", "value": -1}, Idempotency_Key="k").status_code == 200
    assert served.post(f"{path}/curation", {"step_index": 1, "trainable": False, "tags": ["x"]}).status_code == 200
    for tail, body in (
        ("feedback", {"kind": "thumbs", "value": 3}),
        ("feedback", {"kind": "rating"}),
        ("feedback", {"kind": "correction", "text": " "}),
        ("feedback", {"kind": "applause"}),
        ("curation", {"quality": "rejected"}),
        ("curation", {"tags": ["\x00"]}),
    ):
        assert error(served.post(f"{path}/{tail}", body))[0] == 400, body
    for tail, body in (("feedback", {"kind": "thumbs", "value": 1}), ("curation", {"trainable": True})):
        assert error(served.post(f"{path}/{tail}", {**body, "step_index": 7}))[0] == 404
        assert error(served.post(f"/trajectories/nobody/{tail}", body))[0] == 404
    opened.complete(reward=1.0)
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    (trained,) = group.trajectories
    assert [step.trainable for step in trained.steps] == [True, False]
    assert [one["value"] for one in trained.metadata["feedback"]] == [-1]


def test_two_calls_with_the_same_tokens_get_their_own_rewards(start: Start) -> None:
    served = start("yes")
    told = [generate(served, trajectory_uid="t", prompt_uid="p", messages=HELLO) for _ in range(2)]
    assert told[0]["response_ids"] == told[1]["response_ids"]
    tokens = {name: told[0][name] for name in ("prompt_ids", "response_ids")}
    own = [
        payload(index=index, rollout_log_probs=None, reward=reward, **tokens) for index, reward in ((0, 0.2), (1, 0.8))
    ]
    assert accepted(served, *own) == 2
    assert [step.reward for step in served.steps("t")] == [0.2, 0.8]
    assert accepted(served, *own) == 0


def test_the_role_of_a_white_box_call_is_recorded(start: Start) -> None:
    served = start("a plan")
    generate(served, trajectory_uid="t", prompt_uid="p", messages=HELLO, role="planner")
    assert [step.role for step in served.steps("t")] == ["planner"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt_ids": []}, "prompt_ids"),
        ({"policy_version": 7}, "policy version 7 does not exist yet"),
        ({"response_ids": [7] * 200, "rollout_log_probs": [-0.5] * 200}, "do not fit the context"),
    ],
)
def test_an_impossible_step_is_refused(start: Start, wrong: Any, told: str) -> None:
    served = start()
    served.engine.context_length = 100
    status, _, message = error(submit(served, payload(**wrong)))
    assert status == 400 and told in message


def test_a_step_for_another_channel_is_refused(start: Start) -> None:
    served = start()
    assert accepted(served, payload()) == 1
    refused = submit(served, payload(index=1, prompt_ids=[9], response_ids=[9, 9]), channel="val")
    assert error(refused)[0] == 409 and "in the channel 'train'" in error(refused)[2]
    assert len(served.steps("t")) == 1


def test_a_reward_that_could_not_be_written_can_be_submitted_again(start: Start) -> None:
    served = start("It is 4.")
    told = generate(served, trajectory_uid="t", prompt_uid="p", messages=HELLO)
    own = payload(prompt_ids=told["prompt_ids"], response_ids=told["response_ids"], rollout_log_probs=None, reward=0.5)
    recorded = served.store.trajectories
    update, recorded.update_step = recorded.update_step, failing  # pyright: ignore[reportAttributeAccessIssue]
    assert error(submit(served, own))[0] == 503
    recorded.update_step = update
    assert accepted(served, own) == 1 and served.steps("t")[0].reward == 0.5
    assert accepted(served, own) == 0


async def failing(step: Any) -> None:
    raise RunError("no room left to record into", "free disk space")


def test_rewards_whose_sum_overflows_are_refused(start: Start) -> None:
    served = start()
    assert accepted(served, payload(reward=1.7e308)) == 1
    assert error(submit(served, payload(index=1, prompt_ids=[9], reward=1.7e308)))[0] == 400
    assert accepted(served, payload(reward=1.7e308)) == 0
    assert served.post("/complete_trajectory/t", {}).json()["reward"] == 1.7e308


def test_leased_trajectories_are_not_changed(start: Start, clock: MovedClock) -> None:
    served = start("It is 4.", group_timeout_s=2)
    opened, other = served.open(prompt_uid="g", group_size=2), served.open(prompt_uid="g")
    opened.say(HELLO)
    other.complete(reward=1.0)
    clock.advance(2.5)  # sooner than the next heartbeat, which would notice
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    assert {t.uid: t.status for t in group.trajectories}[opened.uid] == "timed_out"
    (step,) = opened.steps
    own = {"prompt_ids": list(step.prompt_ids), "response_ids": list(step.response_ids), "rollout_log_probs": None}
    late = payload(opened.uid, **own, reward=-9.0) | {"prompt_uid": "g"}
    assert error(submit(served, late))[:2] == (409, "trajectory_ended")
    assert opened.steps == (step,)
    assert error(opened.post("/register_trajectory", {"metadata": {"a": 1}}))[:2] == (409, "trajectory_ended")
    assert served.post(f"/trajectories/{opened.uid}/heartbeat").status_code == 409
    fresh = payload(opened.uid, index=1, reward=1.0) | {"prompt_uid": "g"}
    assert accepted(served, fresh) == 1 and opened.steps[1].metadata["late"]
    assert served.metric("midstream_late_steps_total") == 1
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="group_deadline"}') == 1


def test_a_call_after_the_trainer_ended_the_trajectory_is_late_and_the_last(start: Start, clock: MovedClock) -> None:
    served = start("It is 4.", group_timeout_s=2)
    opened, other = served.open(prompt_uid="g", group_size=2), served.open(prompt_uid="g")
    other.complete(reward=1.0)
    clock.advance(2.5)  # sooner than the next heartbeat, which would notice
    served.store.groups.lease("trainer", 1, "train", 60)
    assert opened.chat().status_code == 200
    assert served.metric("midstream_late_steps_total") == 1 and opened.steps[0].metadata["late"]
    assert error(opened.chat())[:2] == (409, "trajectory_ended")
    assert served.client.get(f"/trajectories/{opened.uid}").json()["state"] == "timed_out"


def test_a_late_submission_is_counted_and_the_last(start: Start, clock: MovedClock) -> None:
    served = start(group_timeout_s=2)
    opened, other = served.open(prompt_uid="g", group_size=2), served.open(prompt_uid="g")
    other.complete(reward=1.0)
    clock.advance(2.5)  # sooner than the next heartbeat, which would notice
    served.store.groups.lease("trainer", 1, "train", 60)
    assert error(opened.post("/register_trajectory", {"channel": "val"}))[:2] == (409, "trajectory_ended")
    step = payload(opened.uid) | {"prompt_uid": "g"}
    assert accepted(served, step) == 1 and opened.steps[0].metadata["late"]
    assert served.metric("midstream_late_steps_total") == 1
    found = served.store.trajectories.find(opened.uid)
    assert found is not None and (found.channel, found.trajectory.status) == ("train", "timed_out")


def test_a_reward_during_completion_is_kept_or_refused(start: Start) -> None:
    served = start("It is 4.")
    with ThreadPoolExecutor(2) as pool:
        for number in range(30):
            uid = f"t{number}"
            told = generate(served, trajectory_uid=uid, prompt_uid=uid, messages=HELLO)
            own = {"prompt_ids": told["prompt_ids"], "response_ids": told["response_ids"], "rollout_log_probs": None}
            step = {**payload(uid, **own, reward=0.5), "prompt_uid": uid}
            submitted, _ = pool.submit(submit, served, step), served.post(f"/complete_trajectory/{uid}", {})
            taken = submitted.result().json().get("accepted")
            assert (served.steps(uid)[0].reward == 0.5) is (taken == 1)
