"""Failures of the engine and bugs of the gateway, as clients see them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, error

from midstream.core.errors import EngineError, EngineUnreachable
from midstream.engines.base import Request


@pytest.mark.parametrize("failure", [EngineError("out of memory"), EngineUnreachable("nobody at http://x")])
def test_an_engine_failure_is_502_and_nothing_is_recorded(start: Start, failure: Exception) -> None:
    replies: list[Any] = [failure, failure, failure, "Hello."]
    served = start(lambda request: replies.pop(0))
    opened = served.open()
    status, code, told = error(refused := opened.chat())
    assert (status, code) == (502, "engine_error") and str(failure) in told and refused.headers["retry-after"]
    assert error(opened.chat(stream=True))[0] == 502
    by_anthropic = opened.post("/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 5, "stream": True})
    assert (by_anthropic.status_code, by_anthropic.json()["error"]["type"]) == (502, "api_error")
    assert opened.steps == ()
    assert opened.chat().status_code == 200 and [step.step_index for step in opened.steps] == [0]


def test_a_bug_is_500_counted_and_reveals_nothing(start: Start) -> None:
    def broken(request: Request) -> str:
        raise KeyError("a secret in a message")

    served = start(broken)
    opened = served.open()
    status, code, told = error(opened.chat())
    assert (status, code) == (500, "internal_error") and "KeyError" in told and "secret" not in told
    assert (
        served.metric(
            'midstream_requests_total{route="/{trajectory_uid}/{prompt_uid}/v1/chat/completions",status="500"}'
        )
        == 1
    )
    assert opened.steps == () and served.gateway.admission.running == 0
