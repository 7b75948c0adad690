"""What the gateway does with too much, too large and too late; with engines that fail and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, error, events
from tests.waiting import LIMIT_S, MovedClock, until

from midstream.core.errors import EngineError, EngineUnreachable
from midstream.engines.base import Completion, Request
from midstream.engines.scripted import ScriptedEngine

LONG = "one two three four five six seven eight nine ten " * 4


@contextmanager
def calling(opened: Opened, *, stream: bool = False, key: str = "") -> Iterator[None]:
    """A call under way, whose client hangs up at the end without having read anything."""
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


def test_what_the_queue_has_no_room_for_is_told_to_come_again(start: Start, clock: MovedClock) -> None:
    served = start(engine_latency_s=1.0, limits={"concurrency": 1, "queue": 1})
    opened = served.open()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(opened.chat) for _ in range(4)]
        until(lambda: sum(call.done() for call in calls) == 2)
        clock.advance_until(lambda: all(call.done() for call in calls))
        answers = [call.result() for call in calls]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert error(refused)[1:] == ("rate_limited", "1 calls already wait")
    assert (served.gateway.admission.running, served.gateway.admission.queued) == (0, 0)


def test_a_call_that_takes_too_long_ends_in_504_and_leaves_its_place(start: Start) -> None:
    served = start(engine_hold_after=0, limits={"timeout_s": 0.2, "concurrency": 1})
    opened = served.open()
    assert error(opened.chat())[:2] == error(opened.chat())[:2] == (504, "timeout")
    assert opened.steps == () and served.gateway.admission.running == 0


def test_a_body_over_the_limit_is_413_in_the_shape_of_its_dialect(start: Start) -> None:
    served = start(limits={"body_mb": 0.01})
    opened = served.open()
    large = [{"role": "user", "content": "x" * 20_000}]
    assert error(opened.chat(large))[:2] == (413, "request_too_large")
    told = opened.post("/messages", {"model": "tiny", "messages": large, "max_tokens": 5})
    assert told.status_code == 413 and told.json()["error"]["type"] == "request_too_large"

    def in_pieces() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    assert served.client.post(f"{opened.path}/chat/completions", content=in_pieces()).status_code == 413
    assert opened.steps == () and opened.chat().status_code == 200


def test_a_body_that_does_not_come_is_given_up(start: Start) -> None:
    served = start(limits={"body_timeout_s": 0.3})
    host, port = served.url.removeprefix("http://").split(":")
    head = f"POST /init_trajectory HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode())
        answer = ""
        while "}" not in answer:  # head and body may come one after the other
            answer += connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 408") and "request_timeout" in answer


def test_a_prompt_over_the_context_is_refused_by_name_and_never_cut(start: Start) -> None:
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


def test_while_paused_calls_wait_and_are_answered_after(start: Start) -> None:
    served = start()
    opened = served.open()
    assert served.post("/pause").json()["status"] == "paused"
    assert served.client.get("/ready").status_code == 503 and served.metric("midstream_paused") == 1
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(opened.chat)
        until(lambda: served.gateway.admission.queued == 1)
        assert not waiting.done()
        served.engine.policy_version = 3
        assert served.post("/resume").json()["status"] == "ok"
        assert waiting.result().status_code == 200
    assert opened.steps[0].policy_version == 3 and served.client.get("/ready").status_code == 200


def test_a_weight_update_does_not_lift_a_pause_that_somebody_asked_for(start: Start) -> None:
    served = start()
    served.post("/pause")

    async def swap() -> None:
        served.engine.policy_version += 1

    served.in_loop(served.gateway.update(swap))
    assert served.client.get("/ready").json() == {"status": "paused"}


def post_alone(opened: Opened) -> httpx.Response:
    """A call over a connection of its own."""
    url = f"{opened.served.url}{opened.path}/chat/completions"
    return httpx.post(url, json={"messages": HELLO}, timeout=LIMIT_S)


def test_stopping_lets_calls_under_way_finish(start: Start, clock: MovedClock) -> None:
    served = start(engine_latency_s=1.0)
    opened = served.open()
    with ThreadPoolExecutor(2) as pool:
        under_way = pool.submit(post_alone, opened)
        until(lambda: served.gateway.admission.running == 1)
        stopping = pool.submit(served.stop)
        until(lambda: served.gateway.admission.closed)
        clock.advance_until(under_way.done)
        stopping.result()
        assert under_way.result().status_code == 200
    assert len(start().steps(opened.uid)) == 1


def test_stopping_is_told_at_once_to_those_who_are_still_connected(start: Start, clock: MovedClock) -> None:
    served = start(engine_latency_s=1.0)
    opened = served.open()
    assert served.client.get("/ready").json() == {"status": "ready"}  # from here on the connection is there
    with ThreadPoolExecutor(2) as pool:
        under_way = pool.submit(post_alone, opened)
        until(lambda: served.gateway.admission.running == 1)
        served.loop.call_soon_threadsafe(served._down.set)
        until(lambda: served.gateway.admission.closed)
        assert not under_way.done()
        ready = served.client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
        for refused in (opened.chat(), served.post("/init_trajectory", {})):
            assert error(refused)[:2] == (503, "unavailable") and int(refused.headers["retry-after"]) >= 1
            assert "no longer takes calls: stopping" in error(refused)[2]
        # What ends a trajectory is let in: its agent has nothing else to do.
        assert served.post(f"/trajectories/{opened.uid}/heartbeat").status_code == 200
        clock.advance_until(under_way.done)
        assert under_way.result().status_code == 200
    served._thread.join(LIMIT_S)
    assert not served._thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")


def test_stopping_waits_no_longer_than_it_should(start: Start) -> None:
    served = start(engine_hold_after=0, limits={"drain_s": 0.3})
    opened = served.open()
    with ThreadPoolExecutor(1) as pool:
        hopeless = pool.submit(post_alone, opened)
        until(lambda: served.gateway.admission.running == 1)
        served.loop.call_soon_threadsafe(served._down.set)
        served._thread.join(LIMIT_S)
        assert not served._thread.is_alive()
        failed = hopeless.exception(LIMIT_S)
        assert isinstance(failed, httpx.TransportError) or hopeless.result().is_error
    assert start().steps(opened.uid) == ()


def test_ready_groups_and_stale_ones_hold_new_trajectories_back_until_they_are_taken(start: Start) -> None:
    served = start(backpressure={"max_ready_groups": 2, "max_staleness": 1})
    first = served.open(trajectory_uid="first")
    first.chat()
    first.complete(reward=1.0)
    assert served.post("/init_trajectory", {}).status_code == 200
    served.engine.policy_version = 2
    status, code, told = error(refused := served.post("/init_trajectory", {}))
    assert (status, code) == (429, "backpressure") and "2 policy versions old" in told
    assert int(refused.headers["retry-after"]) >= 1
    served.engine.policy_version = 1
    served.open(trajectory_uid="second").complete(reward=1.0)
    assert "2 groups of the channel 'train' already wait for training" in error(served.post("/init_trajectory", {}))[2]
    assert served.post("/generate", {"messages": HELLO, "trajectory_uid": "new"}).status_code == 429
    (group, _) = served.store.groups.lease("trainer", 2, "train", 60)
    assert group.prompt_uid == first.prompt_uid
    assert served.post("/init_trajectory", {}).status_code == 200


@pytest.mark.parametrize("failure", [EngineError("out of memory"), EngineUnreachable("nobody at http://x")])
def test_an_engine_that_fails_is_502_and_nothing_is_recorded(start: Start, failure: Exception) -> None:
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
def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event(
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


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_the_engine_call_and_nothing_is_recorded(start: Start, stream: bool) -> None:
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


def test_what_the_engine_had_answered_when_the_client_left_is_there_for_its_retry(start: Start) -> None:
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
    assert retry.result().json()["choices"][0]["message"]["content"] == "first"
    assert len(opened.steps) == 1


def test_answers_are_counted_by_route_and_never_by_what_a_client_wrote(start: Start) -> None:
    served = start()
    opened = served.open()
    opened.chat()
    for path in ("/nothing/here/at/all", f"/{opened.uid}/other/v1/models", "/v1/models/gpt-5"):
        served.client.get(path)
    page = served.client.get("/metrics").text
    assert opened.uid not in page and "gpt-5" not in page and "nothing" not in page
    of_chat = 'midstream_requests_total{route="/{trajectory_uid}/{prompt_uid}/v1/chat/completions",status="200"}'
    assert served.metric(of_chat) == 1
    assert served.metric('midstream_requests_total{route="none",status="404"}') == 1


def test_a_bug_of_ours_is_500_in_our_shape_counted_and_tells_nothing_of_the_inside(start: Start) -> None:
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
