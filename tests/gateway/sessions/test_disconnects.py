"""Clients that disconnect: calls are cancelled, and what was sampled is an interrupted step."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened
from tests.gateway.sessions.disconnecting import LONG, disconnect, wait_for_steps
from tests.waiting import LIMIT_S, until

from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Request


def test_tokens_sampled_before_a_disconnect_are_an_interrupted_step(start: Start) -> None:
    served = start(LONG, engine_hold_after=5)
    opened = served.open()
    disconnect(opened)
    (step,) = wait_for_steps(opened, 1)
    assert step.finish_reason == FinishReason.INTERRUPTED
    assert step.metadata["interrupted"] == "the client disconnected"
    assert not step.trainable and 0 < len(step.response_ids) < 200
    assert len(step.response_ids) == len(step.rollout_log_probs or ())
    assert LONG.startswith(step.text) and served.gateway.tokenizer.text_of(step.response_ids) == step.text


def test_an_interrupted_reply_is_not_the_answer(start: Start) -> None:
    served = start(lambda request: LONG if len(request.messages) > 1 else "Four.", engine_hold_after=None)
    opened = served.open()
    opened.chat()
    served.engine.hold_after = 5
    disconnect(opened, messages=[*HELLO, {"role": "assistant", "content": "Four."}, *HELLO])
    wait_for_steps(opened, 2)
    assert opened.post("/complete_trajectory", {}).status_code == 200
    assert served.trajectory(opened.uid).answer == "Four."


def test_a_conversation_continues_after_an_interrupted_step(start: Start) -> None:
    opened = start(lambda request: "Done." if len(request.messages) > 1 else LONG, engine_hold_after=5).open()
    disconnect(opened)
    (cut,) = wait_for_steps(opened, 1)
    opened.served.engine.hold_after = None
    opened.chat([*HELLO, {"role": "assistant", "content": cut.text}, {"role": "user", "content": "Stop."}])
    after = opened.steps[1]
    assert (after.parent, after.branch_reason) == (0, "")
    known = cut.prompt_ids + cut.response_ids
    assert after.prompt_ids[: len(known)] == known


def test_a_stream_past_its_timeout_reports_it(start: Start) -> None:
    opened = start(LONG, engine_hold_after=5, limits={"timeout_s": 0.5}).open()
    response = opened.chat(stream=True)
    assert "no answer within 0.5 s" in response.text
    (step,) = opened.steps
    assert step.finish_reason == FinishReason.INTERRUPTED and not step.trainable


@contextmanager
def calling(opened: Opened, *, stream: bool = False, key: str = "") -> Iterator[None]:
    """A call in progress, whose client disconnects at the end without having read anything."""
    host, port = opened.served.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "tiny", "messages": HELLO, "stream": stream})
    lines = [
        f"POST {opened.path}/chat/completions HTTP/1.1",
        f"Host: {host}",
        f"Content-Length: {len(body)}",
        *([f"Idempotency-Key: {key}"] if key else []),
    ]
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall("\r\n".join([*lines, "", body]).encode())
        yield


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_cancels_the_engine_call_and_nothing_is_recorded(start: Start, stream: bool) -> None:
    served = start(LONG, engine_hold_after=0, limits={"concurrency": 1})
    opened = served.open()
    ended: list[str] = []
    generate = served.engine.generate

    async def watched(request: Request) -> Completion:
        try:
            return await generate(request)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    served.engine.generate = watched
    with calling(opened, stream=stream):
        until(lambda: served.gateway.admission.running == 1)
    until(lambda: ended)
    until(lambda: served.gateway.admission.running == 0)
    assert opened.steps == () and served.metric("midstream_steps_total") == 0
    served.engine.hold_after = None
    assert opened.chat().status_code == 200 and len(opened.steps) == 1


def test_an_answer_finished_before_the_disconnect_is_there_for_the_retry(start: Start) -> None:
    served = start(["first", "second"])
    opened = served.open()
    appending, begun, goes_on = served.store.trajectories.append_future, threading.Event(), threading.Event()

    def slowly(*step: Any) -> asyncio.Future[None]:
        async def write() -> None:
            begun.set()
            await asyncio.to_thread(goes_on.wait)
            await appending(*step)

        return asyncio.ensure_future(write())

    served.store.trajectories.append_future = slowly  # pyright: ignore[reportAttributeAccessIssue]
    with calling(opened, key="a"):
        assert begun.wait(LIMIT_S)
    with ThreadPoolExecutor(1) as pool:
        retry = pool.submit(opened.chat, key="a")
        goes_on.set()
    answer = retry.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "first"
    assert len(opened.steps) == 1
