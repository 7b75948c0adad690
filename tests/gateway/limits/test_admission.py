"""Admission: queue, timeout, pause, and stopping."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, error
from tests.waiting import LIMIT_S, MovedClock, until

LONG = "one two three four five six seven eight nine ten " * 4


def test_a_call_beyond_the_queue_is_429_with_retry_after(start: Start, clock: MovedClock) -> None:
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


def test_a_call_past_its_timeout_is_504_and_frees_its_place(start: Start) -> None:
    served = start(engine_hold_after=0, limits={"timeout_s": 0.2, "concurrency": 1})
    opened = served.open()
    assert error(opened.chat())[:2] == error(opened.chat())[:2] == (504, "timeout")
    assert opened.steps == () and served.gateway.admission.running == 0


def test_paused_calls_wait_and_are_answered_after_resume(start: Start) -> None:
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


def test_a_weight_update_does_not_end_a_requested_pause(start: Start) -> None:
    served = start()
    served.post("/pause")

    async def swap() -> None:
        served.engine.policy_version += 1

    served.in_loop(served.gateway.update(swap))
    assert served.client.get("/ready").json() == {"status": "paused"}


def post_alone(opened: Opened) -> httpx.Response:
    """A call over its own connection."""
    url = f"{opened.served.url}{opened.path}/chat/completions"
    return httpx.post(url, json={"messages": HELLO}, timeout=LIMIT_S)


def test_stopping_lets_calls_in_progress_finish(start: Start, clock: MovedClock) -> None:
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


def test_connected_clients_learn_at_once_that_the_gateway_is_stopping(start: Start, clock: MovedClock) -> None:
    served = start(engine_latency_s=1.0)
    opened = served.open()
    assert served.client.get("/ready").json() == {"status": "ready"}  # opens the connection
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
        # Heartbeats and completions are still accepted.
        assert served.post(f"/trajectories/{opened.uid}/heartbeat").status_code == 200
        clock.advance_until(under_way.done)
        assert under_way.result().status_code == 200
    served._thread.join(LIMIT_S)
    assert not served._thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")


def test_stopping_waits_at_most_the_drain_time(start: Start) -> None:
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
