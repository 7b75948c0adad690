"""Idempotency keys: a repeated call gets the same answers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, Served, error, events

from midstream.core.errors import EngineError
from midstream.engines.base import Request


class Counting:
    """Replies with the number of the call; fails the calls in `failing`."""

    def __init__(self, *failing: int) -> None:
        self.calls, self.failing = 0, failing

    def __call__(self, request: Request) -> Any:
        self.calls += 1
        return EngineError("broken") if self.calls in self.failing else f"reply {self.calls}"


def said(response: httpx.Response) -> list[str]:
    return [choice["message"]["content"] for choice in response.json()["choices"]]


def together(served: Served, *posts: tuple[str, Any, dict[str, str]]) -> list[httpx.Response]:
    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
            return await asyncio.gather(*(client.post(path, json=body, headers=head) for path, body, head in posts))

    return asyncio.run(all_at_once())


def test_a_repeated_call_is_answered_from_the_record(start: Start) -> None:
    served = start(Counting())
    opened = served.open()
    first, again, other = opened.chat(key="a"), opened.chat(key="a"), opened.chat(key="b")
    drop = {"created": 0}
    assert first.json() | drop == again.json() | drop
    assert said(other) == ["reply 2"] and len(opened.steps) == 2
    assert served.metric("midstream_replayed_answers_total") == 1


def test_keys_of_different_trajectories_are_independent(start: Start) -> None:
    served = start(Counting())
    assert [said(served.open().chat(key="a")) for _ in range(2)] == [["reply 1"], ["reply 2"]]


def test_a_key_cannot_be_reused_for_another_call(start: Start) -> None:
    opened = start(Counting()).open()
    assert opened.chat(key="a").status_code == 200
    status, code, told = error(opened.chat([{"role": "user", "content": "Something else"}], key="a"))
    assert (status, code) == (409, "idempotency_key_reused") and "use a new key for each call" in told
    assert error(opened.chat(key="a", max_tokens=3))[:2] == (409, "idempotency_key_reused")
    assert error(opened.chat(key="a", response_format={"type": "json_object"}))[0] == 409
    assert len(opened.steps) == 1


def test_a_key_opens_one_trajectory_with_the_same_values(start: Start) -> None:
    served = start()
    opening = {"prompt_uid": "p", "group_size": 2, "channel": "val", "task": {"prompt": "?", "answer": "4"}}
    first, again = (served.post("/init_trajectory", opening, Idempotency_Key="a").json() for _ in range(2))
    assert first["trajectory_uid"] == again["trajectory_uid"]
    opened = Opened(served, first)
    assert opened.post("/register_trajectory", {"metadata": {"run": 1}}).status_code == 200
    assert served.post("/init_trajectory", opening, Idempotency_Key="a").json()["trajectory_uid"] == opened.uid
    others: list[tuple[str, Any]] = [
        ("channel", "train"),
        ("group_size", 3),
        ("prompt_uid", "q"),
        ("task", {"answer": "5"}),
    ]
    for name, value in others:
        answer = served.post("/init_trajectory", {**opening, name: value}, Idempotency_Key="a")
        assert error(answer)[0] == 409 and "already open" in answer.text


def test_two_users_with_the_same_key_get_one_trajectory_each(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("one", "two")
    for name in names:
        monkeypatch.setenv(f"KEY_OF_{name}", f"the secret of user {name}")
    served = start(keys=tuple({"name": name, "env": f"KEY_OF_{name}"} for name in names))
    own = [
        served.post("/init_trajectory", {}, Idempotency_Key="1", Authorization=f"Bearer the secret of user {name}")
        for name in names
    ]
    assert own[0].json()["trajectory_uid"] != own[1].json()["trajectory_uid"]


def test_concurrent_calls_with_one_key_are_sampled_once(start: Start) -> None:
    script = Counting()
    served = start(script, engine_latency_s=0.2)
    opened = served.open()
    body = {"model": "tiny", "messages": HELLO}
    path = f"{opened.path}/chat/completions"
    plain, streamed, third = together(
        served,
        (path, body, {"Idempotency-Key": "a"}),
        (path, {**body, "stream": True}, {"Idempotency-Key": "a"}),
        (path, body, {"Idempotency-Key": "a"}),
    )
    assert said(plain) == said(third) == ["reply 1"] and script.calls == 1
    text = "".join(choice["delta"].get("content") or "" for e in events(streamed.text) for choice in e["choices"])
    assert text == "reply 1" and len(opened.steps) == 1


def test_a_call_that_waited_for_a_failed_one_is_sampled(start: Start) -> None:
    served = start(Counting(1), engine_latency_s=0.2)
    opened = served.open()
    post = (f"{opened.path}/chat/completions", {"messages": HELLO}, {"Idempotency-Key": "a"})
    answers = together(served, post, post)
    assert sorted(answer.status_code for answer in answers) == [200, 502]
    assert len(opened.steps) == 1


def test_after_a_restart_the_answer_is_the_same_in_every_dialect(start: Start) -> None:
    served = start(Counting())
    opened = served.open()
    calls: tuple[tuple[str, Any], ...] = (
        ("/chat/completions", {"messages": HELLO, "logprobs": True}),
        ("/completions", {"prompt": "Hello", "logprobs": 0}),
        ("/responses", {"model": "tiny", "input": "Hello"}),
        ("/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 9}),
    )

    def answers() -> list[Any]:
        drop = {"created": 0, "created_at": 0, "completed_at": 0}
        told = [opened.post(path, body, Idempotency_Key=path) for path, body in calls]
        assert [one.status_code for one in told] == [200] * 4, [one.text for one in told]
        return [one.json() | drop for one in told]

    first = answers()
    served.stop()
    opened.served = start("something else")
    assert answers() == first
    assert len(opened.steps) == 4


def test_only_missing_choices_are_sampled(start: Start) -> None:
    script = Counting(2)
    opened = start(script, limits={"concurrency": 1}).open()
    assert error(opened.chat(key="a", n=3))[0] == 502
    there = {step.metadata["choice"]: step.text for step in opened.steps}
    made = len(there)
    assert 0 < made < 3
    answers = said(opened.chat(key="a", n=3))
    assert len(set(answers)) == 3 and {place: answers[place] for place in there} == there
    assert said(opened.chat(key="a", n=3)) == answers
    assert len(opened.steps) == 3


def test_choices_keep_their_order_whichever_was_recorded_first(start: Start) -> None:
    # The first of two choices fails, so only the second is recorded when the call is repeated.
    opened = start(Counting(1), limits={"concurrency": 1}).open()
    path = f"{opened.path}/chat/completions"
    assert opened.served.post(path, {"messages": HELLO, "n": 2}, Idempotency_Key="a").status_code == 502
    answers = said(opened.chat(key="a", n=2))
    assert [step.text for step in sorted(opened.steps, key=lambda step: step.metadata["choice"])] == answers


def test_an_invalid_key_is_refused(start: Start) -> None:
    opened = start().open()
    for key in ("", "x" * 256):
        assert error(opened.chat(key=key))[0] == 400
