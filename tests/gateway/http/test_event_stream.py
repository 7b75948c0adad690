"""Server-sent events: pings during a silence, and errors inside a stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, events
from tests.waiting import MovedClock

from midstream.core.errors import EngineError
from midstream.engines.base import Completion, Request
from midstream.engines.scripted import ScriptedEngine


class Dying(ScriptedEngine):
    """Fails after its first tokens."""

    async def generate(self, request: Request) -> Completion:
        if request.on_tokens is not None:
            ids = self.tokenizer.encode("Once upon a time")
            for token in ids:
                request.on_tokens((token,), (-1.0,))
                await asyncio.sleep(0)
        raise EngineError("died")


@pytest.mark.parametrize(
    ("path", "shape"), [("/chat/completions", "openai"), ("/completions", "openai"), ("/messages", "anthropic")]
)
def test_an_engine_failure_in_a_stream_is_an_error_event(
    start: Start, tiny_tokenizer: Any, path: str, shape: str
) -> None:
    served = start()
    served.gateway.role_engine.engine.generate = Dying(tiny_tokenizer, "").generate  # pyright: ignore[reportAttributeAccessIssue]
    opened = served.open()
    body = {"prompt": "Hi"} if path == "/completions" else {"messages": HELLO, "max_tokens": 50}
    streamed = opened.post(path, {"model": "tiny", **body, "stream": True})
    assert streamed.status_code == 200 and "[DONE]" not in streamed.text
    assert len(events(streamed.text)) > 4
    last = events(streamed.text)[-1]
    assert last["error"]["message"] == "the engine failed: died"
    assert (last.get("type") == "error") == (shape == "anthropic") == ("event: error" in streamed.text)
    assert opened.steps == () and served.gateway.admission.running == 0


@pytest.mark.parametrize(
    ("path", "ping", "last"),
    [
        ("/messages", 'event: ping\ndata: {"type": "ping"}', "message_stop"),
        ("/responses", ": ping", "response.completed"),
    ],
)
def test_a_silence_gets_pings(start: Start, clock: MovedClock, path: str, ping: str, last: str) -> None:
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


def test_clients_ignore_pings(start: Start) -> None:
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
