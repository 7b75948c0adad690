"""Prompts longer than the context are refused, never cut."""

from __future__ import annotations

from typing import Any

import httpx
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, KEY, Opened, error

from midstream.engines.chat import ChatTokenizer

TEXT = "The quick brown <b>fox</b> jumps over 13 lazy dogs, and says: {1, 2, [3]}.\n"

LONG = "one two three four five six seven eight nine ten " * 4


def test_a_prompt_over_the_context_is_refused_and_never_cut(start: Start) -> None:
    served = start(engine_context_length=40)
    opened = served.open()
    status, code, told = error(opened.chat([{"role": "user", "content": LONG}]))
    assert (status, code) == (400, "context_length_exceeded")
    assert "in a context of 40" in told and "nothing is cut" in told
    body = {"model": "tiny", "messages": [{"role": "user", "content": LONG}], "max_tokens": 5}
    by_anthropic = opened.post("/messages", body)
    assert by_anthropic.json()["error"]["type"] == "invalid_request_error"
    streamed = opened.chat([{"role": "user", "content": LONG}], stream=True)
    assert error(streamed)[:2] == (400, "context_length_exceeded")
    assert opened.steps == ()


def text(megabytes: float) -> str:
    return TEXT * round(megabytes * 1e6 / len(TEXT))


def messages(count: int) -> list[Any]:
    return [{"role": "user", "content": "hi"}] * count


def test_more_messages_than_the_context_has_tokens_are_refused(start: Start) -> None:
    served = start(engine_context_length=50)
    status, code, told = error(served.open().chat(messages(51)))
    assert (status, code) == (400, "context_length_exceeded") and "51 messages do not fit" in told


def test_thoughts_that_the_template_drops_do_not_count(start: Start, thinking_tokenizer: ChatTokenizer) -> None:
    served = start(engine_context_length=300)
    served.gateway.tokenizer = thinking_tokenizer
    object.__setattr__(served.gateway.role_engine, "tokenizer", thinking_tokenizer)
    thought = [*HELLO, {"role": "assistant", "content": f"<think>{text(0.1)}</think>Hi."}, *HELLO]
    assert served.open().chat(thought, max_tokens=5).status_code == 200


def test_count_tokens_counts_against_the_limits_of_its_key(start: Start, keyed: dict[str, Any]) -> None:
    served = start(keys=({**keyed["keys"][0], "requests_per_minute": 2},))
    opened = Opened(served, served.post("/init_trajectory", {}, Authorization=f"Bearer {KEY}").json())
    counted = [opened.post("/messages/count_tokens", {"model": "tiny", "messages": HELLO}) for _ in range(3)]
    assert [answer.status_code for answer in counted] == [200, 200, 429]
    assert error_type(counted[2]) == "rate_limit_error"


def error_type(response: httpx.Response) -> str:
    return response.json()["error"]["type"]
