"""Grammars of large schemas are built off the event loop, and only for prompts that fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Served, error
from tests.waiting import LIMIT_S

from midstream.engines.chat import ChatTokenizer

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "description": "a long description " * 1200}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", {"messages": HELLO, "response_format": JSON_SCHEMA}),
    "chat tool": ("/chat/completions", {"messages": HELLO, "tools": [TOOL], "tool_choice": "required"}),
    "responses": ("/responses", {"input": "?", "text": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    "messages": (
        "/messages",
        {
            "messages": HELLO,
            "max_tokens": 9,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ),
}


class Building:
    """Replaces the grammar builder by one that waits for `finish`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokenizer: ChatTokenizer) -> None:
        self.started, self.finish = threading.Event(), threading.Event()
        chat_format = type(tokenizer.format)
        for name in ("answer", "constraint"):
            monkeypatch.setattr(chat_format, name, self._waiting(getattr(chat_format, name)))

    def _waiting(self, build: Any) -> Any:
        def waiting(*args: Any) -> Any:
            self.started.set()
            assert self.finish.wait(LIMIT_S)
            return build(*args)

        return waiting


@pytest.fixture
def served(start: Start) -> Served:
    return start('{"a": 1}', engine_context_length=40_000)


@pytest.fixture
def building(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Building]:
    builder = Building(monkeypatch, served.gateway.tokenizer)
    yield builder
    builder.finish.set()


@pytest.mark.parametrize("name", CALLS)
def test_health_answers_while_a_large_schema_is_compiled(served: Served, building: Building, name: str) -> None:
    path, body = CALLS[name]
    opened = served.open()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(opened.post, path, {"model": "tiny", **body})
        assert building.started.wait(LIMIT_S)
        try:
            assert httpx.get(f"{served.url}/health", timeout=10).status_code == 200
            assert not call.done()
        finally:
            building.finish.set()
        assert call.result().status_code == 200, call.result().text
    assert opened.steps[0].metadata["sampling"]["constraint"]


def test_the_length_of_a_prompt_is_checked_before_its_grammar_is_built(served: Served, building: Building) -> None:
    opened = served.open()
    too_long = [{"role": "user", "content": "many words " * 100_000}]
    answer = opened.chat(too_long, response_format=JSON_SCHEMA)
    assert error(answer)[:2] == (400, "context_length_exceeded")
    assert not building.started.is_set()
