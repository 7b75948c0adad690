"""Log-probabilities by token: bytes, text offsets, and replays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, error, events

TEXTS = ("Plain text.", "né 👋 日本 ok", "One. STOP more 👋")


def completion(opened: Opened, key: str = "", **more: Any) -> dict[str, Any]:
    headers = {"Idempotency_Key": key} if key else {}
    response = opened.post("/completions", {"model": "tiny", "prompt": "?", **more}, **headers)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_text(start: Start, text: str) -> None:
    opened = start(text).open()
    entries = opened.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in entries).decode() == f"{text}<|im_end|>"
    for one in entries:
        assert one["top_logprobs"][0]["bytes"] == one["bytes"] and len(one["top_logprobs"]) == 2
        assert one["token"].encode() == bytes(one["bytes"]) or one["token"].startswith("\\x")
    streamed = [
        token
        for chunk in events(opened.chat(logprobs=True, stream=True).text)
        for choice in chunk["choices"]
        if choice["logprobs"]
        for token in choice["logprobs"]["content"]
    ]
    assert [one["bytes"] for one in streamed] == [one["bytes"] for one in entries]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("limit", [2, 6, 40])
def test_text_offsets_are_where_tokens_begin(start: Start, text: str, limit: int) -> None:
    choice = completion(start(text).open(), logprobs=1, max_tokens=limit, stop=["STOP"])["choices"][0]
    said, told = choice["text"], choice["logprobs"]
    offsets = told["text_offset"]
    assert offsets == sorted(offsets) and all(0 <= offset <= len(said) for offset in offsets)
    assert len({len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
    for token, offset in zip(told["tokens"], offsets, strict=True):
        if offset < len(said) and "\\x" not in token:
            assert said.startswith(token[: len(said) - offset], offset)


def test_alternatives_that_are_parts_of_characters_have_distinct_texts(start: Start) -> None:
    told = completion(start("👋👋").open(), logprobs=5)["choices"][0]["logprobs"]
    assert all(len(top) == 5 for top in told["top_logprobs"])


def test_log_probabilities_of_the_prompt_are_refused(start: Start) -> None:
    opened = start().open()
    for count in (0, 2):
        refused = opened.post("/completions", {"prompt": "?", "echo": True, "logprobs": count})
        assert error(refused)[0] == 400 and refused.json()["error"]["param"] == "echo"
    assert opened.steps == ()


@pytest.mark.parametrize("text", TEXTS)
def test_a_replayed_answer_is_identical_to_the_first(start: Start, text: str) -> None:
    served = start(text)
    opened = served.open()
    wanted = {"logprobs": True, "top_logprobs": 3, "n": 2, "stop": ["STOP"]}
    first, again = (opened.chat(key="a", **wanted).text for _ in range(2))
    assert first == again
    assert completion(opened, "b", logprobs=3) == completion(opened, "b", logprobs=3)
    streams = [opened.chat(key="c", stream=True, logprobs=True).text for _ in range(2)]
    assert streams[0] == streams[1]
    plain = [opened.post("/completions", {"prompt": "?", "stream": True}, Idempotency_Key="d").text for _ in range(2)]
    assert plain[0] == plain[1]
    served.stop()
    later = Opened(start(text), opened.told)  # from the store of the first one
    assert later.chat(key="a", **wanted).text == first
    assert later.chat(key="c", stream=True, logprobs=True).text == streams[0]


def test_an_sdk_retry_gets_an_identical_answer(start: Start) -> None:
    opened = start("Hello.").open()
    body = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 3}
    first, again = (opened.post("/chat/completions", body, X_Stainless_Retry_Count=retry).text for retry in "01")
    assert first == again and len(opened.steps) == 1
    assert len(json.loads(again)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 3


def test_alternatives_are_stored_only_for_repeatable_calls(start: Start) -> None:
    opened = start().open()
    opened.chat(HELLO, logprobs=True, top_logprobs=3)
    opened.chat(HELLO, key="a", logprobs=True, top_logprobs=3)
    assert ["top_log_probs" in step.metadata for step in opened.steps] == [False, True]
