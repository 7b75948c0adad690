"""A client that sends large bodies is refused or served without blocking others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import Opened, Served

TEXT = "The quick brown <b>fox</b> jumps over 13 lazy dogs, and says: {1, 2, [3]}.\n"
LONGEST_S = 0.1
"""Processor time of this process between two turns of the event loop; wall time would depend on other processes."""
TRIES = 4


def text(megabytes: float) -> str:
    return TEXT * round(megabytes * 1e6 / len(TEXT))


def messages(count: int) -> list[Any]:
    return [{"role": "user", "content": "hi"}] * count


@contextmanager
def turning(served: Served) -> Iterator[list[float]]:
    """Record the processor time between the turns of the gateway's event loop."""
    gaps: list[float] = []
    stop = threading.Event()

    async def turn() -> None:
        while not stop.is_set():
            before = time.process_time()
            await asyncio.sleep(0.001)
            gaps.append(time.process_time() - before)

    turns = asyncio.run_coroutine_threadsafe(turn(), served.loop)
    try:
        yield gaps
    finally:
        stop.set()
        turns.result(60)


def stays_responsive(served: Served, path: str, body: Any) -> httpx.Response:
    """Post `body` and return the answer. Meanwhile the event loop must turn and `/health` must answer."""
    worst: list[float] = []
    content = json.dumps(body).encode()
    for _ in range(TRIES):
        with ThreadPoolExecutor(1) as pool, turning(served) as gaps:
            sending = pool.submit(served.client.post, path, content=content, timeout=300)
            while not sending.done():
                assert httpx.get(f"{served.url}/health", timeout=60).status_code == 200
            response = sending.result()
        worst.append(max(gaps))
        if worst[-1] < LONGEST_S:
            return response
    raise AssertionError(f"the event loop was blocked for {min(worst):.3f} s of processor time at best")


def bodies(opened: Opened, content: Any) -> dict[str, Any]:
    """A conversation for every endpoint that takes one."""
    many = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return {
        f"{opened.path}/chat/completions": {"messages": many},
        f"{opened.path}/messages": {"model": "tiny", "messages": many, "max_tokens": 5, "stream": True},
        f"{opened.path}/messages/count_tokens": {"model": "tiny", "messages": many},
        f"{opened.path}/responses": {"model": "tiny", "input": many},
        "/generate": {"messages": many, "trajectory_uid": opened.uid},
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("megabytes", "context"), [(20, 65_536), (5, 500_000)])
def test_text_that_cannot_fit_is_refused_without_blocking(start: Start, megabytes: int, context: int) -> None:
    served = start(engine_context_length=context)
    opened = served.open()
    sent = bodies(opened, text(megabytes)) | {f"{opened.path}/completions": {"prompt": text(megabytes)}}
    if context == 500_000:  # counting that many tokens takes seconds, and is the same for every conversation
        sent = {path: body for path, body in sent.items() if path.endswith("completions")}
    for path, body in sent.items():
        response = stays_responsive(served, path, body)
        assert response.status_code == 400, (path, response.text[:300])
        assert " fit " in response.json()["error"]["message"], path
    assert opened.steps == () and opened.chat().status_code == 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("context", "status"), [(65_536, 400), (1_000_000, 413)])
def test_a_hundred_thousand_messages_are_refused_without_blocking(start: Start, context: int, status: int) -> None:
    served = start(engine_context_length=context)
    opened = served.open()
    for path, body in bodies(opened, messages(100_000)).items():
        response = stays_responsive(served, path, body)
        assert response.status_code == status, (path, response.text[:300])
        wanted = "50000 objects, lists and fields" if status == 413 else "does not fit the context"
        assert wanted in response.json()["error"]["message"], path
    assert opened.chat().status_code == 200


@pytest.mark.timeout(600)
def test_a_long_prompt_that_fits_is_answered_without_blocking(start: Start) -> None:
    served = start(engine_context_length=1_000_000)
    opened = served.open()
    body = {"messages": [{"role": "user", "content": text(0.4)}], "max_tokens": 5}
    assert stays_responsive(served, f"{opened.path}/chat/completions", body).status_code == 200
    (step, *_) = opened.steps
    assert step.prompt_ids == served.gateway.tokenizer.render(step.messages)


@pytest.mark.timeout(600)
def test_memory_is_released(start: Start) -> None:
    served = start(engine_context_length=200_000)
    opened = served.open()
    content = json.dumps({"messages": [{"role": "user", "content": text(3)}]})
    path = f"{opened.path}/chat/completions"
    served.client.post(path, content=content, timeout=120)
    before = psutil.Process().memory_info().rss
    for _ in range(5):
        assert served.client.post(path, content=content, timeout=120).status_code == 400
    assert psutil.Process().memory_info().rss - before < 100e6
