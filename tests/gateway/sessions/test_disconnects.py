"""A client that hangs up in the midst of a stream leaves a step that says so; its SDK's retry is no second one."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened
from tests.waiting import MovedClock, until

from midstream.core.errors import EngineError
from midstream.core.types import FinishReason

LONG = "word " * 200


def hang_up(opened: Opened, retry: str = "", messages: list[Any] = HELLO) -> None:
    """Read some events of a stream, and go."""
    body = {"model": "tiny", "messages": messages, "stream": True}
    headers = {"Authorization": f"Bearer {opened.token}", **({"X-Stainless-Retry-Count": retry} if retry else {})}
    path = f"{opened.path}/chat/completions"
    with opened.served.client.stream("POST", path, content=json.dumps(body), headers=headers) as response:
        lines = (line for line in response.iter_lines() if line)
        for _ in range(3):
            next(lines)


def wait_for_steps(opened: Opened, count: int) -> Any:
    return until(lambda: opened.steps if len(opened.steps) >= count else ())


def test_what_was_sampled_before_a_client_hung_up_is_a_step_that_says_so(start: Start) -> None:
    served = start(LONG, engine_hold_after=5)
    opened = served.open()
    hang_up(opened)
    (step,) = wait_for_steps(opened, 1)
    assert step.finish_reason == FinishReason.INTERRUPTED
    assert step.metadata["interrupted"] == "the client disconnected"
    assert not step.trainable and 0 < len(step.response_ids) < 200
    assert len(step.response_ids) == len(step.rollout_log_probs or ())
    assert LONG.startswith(step.text) and served.gateway.tokenizer.text_of(step.response_ids) == step.text


def test_what_a_client_did_not_hear_to_the_end_is_no_answer(start: Start) -> None:
    served = start(lambda request: LONG if len(request.messages) > 1 else "Four.", engine_hold_after=None)
    opened = served.open()
    opened.chat()
    served.engine.hold_after = 5
    hang_up(opened, messages=[*HELLO, {"role": "assistant", "content": "Four."}, *HELLO])
    wait_for_steps(opened, 2)
    assert opened.post("/complete_trajectory", {}).status_code == 200
    assert served.trajectory(opened.uid).answer == "Four."


def test_an_agent_goes_on_from_what_it_had_read(start: Start) -> None:
    opened = start(lambda request: "Done." if len(request.messages) > 1 else LONG, engine_hold_after=5).open()
    hang_up(opened)
    (cut,) = wait_for_steps(opened, 1)
    opened.served.engine.hold_after = None
    opened.chat([*HELLO, {"role": "assistant", "content": cut.text}, {"role": "user", "content": "Stop."}])
    after = opened.steps[1]
    assert (after.parent, after.branch_reason) == (0, "")
    known = cut.prompt_ids + cut.response_ids
    assert after.prompt_ids[: len(known)] == known


def test_a_stream_that_takes_too_long_says_so_too(start: Start) -> None:
    opened = start(LONG, engine_hold_after=5, limits={"timeout_s": 0.5}).open()
    response = opened.chat(stream=True)
    assert "no answer within 0.5 s" in response.text
    (step,) = opened.steps
    assert step.finish_reason == FinishReason.INTERRUPTED and not step.trainable


def test_a_retry_after_hanging_up_is_one_trainable_step(start: Start) -> None:
    opened = start(LONG, engine_hold_after=5).open()
    hang_up(opened, "0")
    wait_for_steps(opened, 1)
    opened.served.engine.hold_after = None
    opened.post("/chat/completions", {"model": "tiny", "messages": HELLO}, X_Stainless_Retry_Count="1")
    assert [step.trainable for step in opened.steps] == [False, True]


def test_a_retry_is_answered_by_what_was_recorded(start: Start) -> None:
    """The answer was sampled and lost on its way."""
    calls = iter(range(99))
    served = start(lambda request: f"reply {next(calls)}")
    opened = served.open()
    asked = {"model": "tiny", "messages": HELLO}

    def said(retry: int, **more: Any) -> str:
        response = opened.post("/chat/completions", {**asked, **more}, X_Stainless_Retry_Count=str(retry))
        return response.json()["choices"][0]["message"]["content"]

    assert (said(0), said(1), said(2)) == ("reply 0", "reply 0", "reply 0")
    assert said(1, temperature=0.5) == "reply 1", "it is another call"
    assert said(0) == "reply 2", "an agent may ask the same again"
    assert len(opened.steps) == 3
    assert served.metric("midstream_replayed_answers_total") == 2


def test_a_retry_is_known_after_a_restart(start: Start) -> None:
    calls = iter(range(99))
    served = start(lambda request: f"reply {next(calls)}")
    opened = served.open()
    body = {"model": "tiny", "messages": HELLO}
    opened.post("/chat/completions", body, X_Stainless_Retry_Count="0")
    served.stop()
    again = start("another")
    response = again.post(
        f"{opened.path}/chat/completions",
        body,
        Authorization=f"Bearer {opened.token}",
        X_Stainless_Retry_Count="1",
    )
    assert response.json()["choices"][0]["message"]["content"] == "reply 0"
    assert len(again.steps(opened.uid)) == 1
    other = again.post(
        f"{opened.path}/chat/completions",
        {**body, "top_p": 0.5},
        Authorization=f"Bearer {opened.token}",
        X_Stainless_Retry_Count="1",
    )
    assert other.json()["choices"][0]["message"]["content"] == "another", "it is another call"


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_the_clients_own_retries_are_one_step(start: Start, client: str) -> None:
    """The client loses patience before its first answer is there, and asks again by itself."""
    served = start("Hello.", engine_hold_after=0)
    opened = served.open()
    base = f"{served.url}{opened.path}"
    if client == "openai":
        with openai.OpenAI(base_url=base, api_key=opened.token, timeout=0.4, max_retries=1) as sdk:
            with pytest.raises(openai.APITimeoutError):
                sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello?"}])
            served.engine.hold_after = None
            sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello?"}])
    else:
        root = base.removesuffix("/v1")
        with anthropic.Anthropic(base_url=root, api_key=opened.token, timeout=0.4, max_retries=1) as sdk:
            with pytest.raises(anthropic.APITimeoutError):
                sdk.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": "Hello?"}])
            served.engine.hold_after = None
            sdk.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": "Hello?"}])
    assert sum(step.trainable for step in opened.steps) == 1


def test_a_retry_of_a_call_that_failed_is_sampled(start: Start) -> None:
    """Of two equal calls side by side one failed: its retry is not given the other's answer."""
    replies = iter(["reply 0", EngineError("broken"), "reply 1"])
    opened = start(lambda request: next(replies)).open()
    body = {"model": "tiny", "messages": HELLO}
    statuses = [
        opened.post("/chat/completions", body, X_Stainless_Retry_Count=retry).status_code for retry in ("0", "0", "1")
    ]
    assert statuses == [200, 502, 200]
    assert [step.text for step in opened.steps] == ["reply 0", "reply 1"]


@pytest.mark.parametrize(
    ("path", "ping", "last"),
    [
        ("/messages", 'event: ping\ndata: {"type": "ping"}', "message_stop"),
        ("/responses", ": ping", "response.completed"),
    ],
)
def test_a_long_silence_gets_a_ping(start: Start, clock: MovedClock, path: str, ping: str, last: str) -> None:
    served = start("Hello.", engine_latency_s=1.0, limits={"ping_s": 0.1})
    opened = served.open()
    body = (
        {"model": "tiny", "max_tokens": 99, "messages": HELLO}
        if path == "/messages"
        else {"model": "tiny", "input": "?"}
    )
    content, headers = json.dumps({**body, "stream": True}), {"Authorization": f"Bearer {opened.token}"}
    with served.client.stream("POST", f"{opened.path}{path}", content=content, headers=headers) as response:
        assert response.status_code == 200
        heard = ""
        for text in response.iter_text():
            heard += text
            if heard.count(ping) >= 2:
                clock.advance(1.0)  # the engine answers
    assert heard.startswith(ping) and last in heard


def test_a_client_reads_over_pings(start: Start) -> None:
    served = start("Hello.", engine_latency_s=0.5, limits={"ping_s": 0.1})
    opened = served.open()
    root = f"{served.url}/{opened.uid}/{opened.prompt_uid}"
    with (
        anthropic.Anthropic(base_url=root, api_key=opened.token) as sdk,
        sdk.messages.stream(model="tiny", max_tokens=9, messages=[{"role": "user", "content": "?"}]) as stream,
    ):
        assert stream.get_final_text() == "Hello."
    with openai.OpenAI(base_url=f"{root}/v1", api_key=opened.token) as sdk:
        chunks = sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "?"}], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."


def test_an_error_after_a_ping_is_an_event(start: Start) -> None:
    opened = start(EngineError("broken"), engine_latency_s=0.4, limits={"ping_s": 0.1}).open()
    response = opened.chat(stream=True)
    assert response.status_code == 200 and "the engine failed: broken" in response.text
