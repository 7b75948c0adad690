"""Retries that an SDK makes by itself are recognized: a call is one trainable step."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO
from tests.gateway.sessions.disconnecting import LONG, disconnect, wait_for_steps

from midstream.core.errors import EngineError


def test_a_retry_after_a_disconnect_is_one_trainable_step(start: Start) -> None:
    opened = start(LONG, engine_hold_after=5).open()
    disconnect(opened, "0")
    wait_for_steps(opened, 1)
    opened.served.engine.hold_after = None
    opened.post("/chat/completions", {"model": "tiny", "messages": HELLO}, X_Stainless_Retry_Count="1")
    assert [step.trainable for step in opened.steps] == [False, True]


def test_a_retry_is_answered_from_the_record(start: Start) -> None:
    """The answer was sampled but did not reach the client."""
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


def test_a_retry_is_recognized_after_a_restart(start: Start) -> None:
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
def test_the_retries_of_clients_are_one_step(start: Start, client: str) -> None:
    """The client times out before its first answer and retries by itself."""
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
    """One of two equal calls failed: its retry does not get the other's answer."""
    replies = iter(["reply 0", EngineError("broken"), "reply 1"])
    opened = start(lambda request: next(replies)).open()
    body = {"model": "tiny", "messages": HELLO}
    statuses = [
        opened.post("/chat/completions", body, X_Stainless_Retry_Count=retry).status_code for retry in ("0", "0", "1")
    ]
    assert statuses == [200, 502, 200]
    assert [step.text for step in opened.steps] == ["reply 0", "reply 1"]
