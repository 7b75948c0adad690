"""One client that sends much: it is refused or served, and meanwhile everybody else is answered."""

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
from tests.gateway.served import HELLO, KEY, Opened, Served, error

from midstream.engines.chat import ChatTokenizer
from midstream.gateway.http.bodies import has_more_than

TEXT = "The quick brown <b>fox</b> jumps over 13 lazy dogs, and says: {1, 2, [3]}.\n"
LONGEST_S = 0.1
"""Processor time that may go by between two turns of the event loop. Of the process, not of the clock: others may keep
the machine busy."""
TRIES = 4


def text(megabytes: float) -> str:
    return TEXT * round(megabytes * 1e6 / len(TEXT))


def messages(count: int) -> list[Any]:
    return [{"role": "user", "content": "hi"}] * count


@contextmanager
def turning(served: Served) -> Iterator[list[float]]:
    """The processor time that this process used between any two turns of the gateway's event loop."""
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
    """The answer to `body`, while which is worked on the event loop turns and `/health` is answered."""
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
    raise AssertionError(f"the event loop stood still for {min(worst):.3f} s of processor time at best")


def bodies(opened: Opened, content: Any) -> dict[str, Any]:
    """Every way to send a conversation."""
    many = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return {
        f"{opened.path}/chat/completions": {"messages": many},
        f"{opened.path}/messages": {"model": "tiny", "messages": many, "max_tokens": 5, "stream": True},
        f"{opened.path}/messages/count_tokens": {"model": "tiny", "messages": many},
        f"{opened.path}/responses": {"model": "tiny", "input": many},
        "/generate": {"messages": many, "trajectory_uid": opened.uid},
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("megabytes", "context"), [(5, 65_536), (20, 65_536), (5, 500_000), (20, 1_000_000)])
def test_text_that_cannot_fit_is_refused_and_holds_nobody_up(start: Start, megabytes: int, context: int) -> None:
    served = start(engine_context_length=context)
    opened = served.open()
    sent = bodies(opened, text(megabytes)) | {f"{opened.path}/completions": {"prompt": text(megabytes)}}
    for path, body in sent.items():
        response = stays_responsive(served, path, body)
        assert response.status_code == 400, (path, response.text[:300])
        assert " fit " in response.json()["error"]["message"], path
    assert opened.steps == () and opened.chat().status_code == 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("context", "status"), [(65_536, 400), (1_000_000, 413)])
def test_a_hundred_thousand_messages_are_refused_and_hold_nobody_up(start: Start, context: int, status: int) -> None:
    served = start(engine_context_length=context)
    opened = served.open()
    for path, body in bodies(opened, messages(100_000)).items():
        response = stays_responsive(served, path, body)
        assert response.status_code == status, (path, response.text[:300])
        wanted = "50000 objects, lists and fields" if status == 413 else "does not fit the context"
        assert wanted in response.json()["error"]["message"], path
    assert opened.chat().status_code == 200


@pytest.mark.timeout(600)
def test_a_long_prompt_that_fits_is_answered_and_holds_nobody_up(start: Start) -> None:
    served = start(engine_context_length=1_000_000)
    opened = served.open()
    body = {"messages": [{"role": "user", "content": text(0.4)}], "max_tokens": 5}
    assert stays_responsive(served, f"{opened.path}/chat/completions", body).status_code == 200
    (step, *_) = opened.steps
    assert step.prompt_ids == served.gateway.tokenizer.render(step.messages)


@pytest.mark.timeout(600)
def test_memory_goes_back(start: Start) -> None:
    served = start(engine_context_length=500_000)
    opened = served.open()
    content = json.dumps({"messages": [{"role": "user", "content": text(5)}]})
    path = f"{opened.path}/chat/completions"
    served.client.post(path, content=content, timeout=120)
    before = psutil.Process().memory_info().rss
    for _ in range(5):
        assert served.client.post(path, content=content, timeout=120).status_code == 400
    assert psutil.Process().memory_info().rss - before < 100e6


def test_messages_are_counted_against_the_context_too(start: Start) -> None:
    served = start(engine_context_length=50)
    status, code, told = error(served.open().chat(messages(51)))
    assert (status, code) == (400, "context_length_exceeded") and "51 messages do not fit" in told


def test_thoughts_that_a_template_leaves_out_do_not_count(start: Start, thinking_tokenizer: ChatTokenizer) -> None:
    served = start(engine_context_length=300)
    served.gateway.tokenizer = thinking_tokenizer
    object.__setattr__(served.gateway.role_engine, "tokenizer", thinking_tokenizer)
    thought = [*HELLO, {"role": "assistant", "content": f"<think>{text(0.1)}</think>Hi."}, *HELLO]
    assert served.open().chat(thought, max_tokens=5).status_code == 200


def test_count_tokens_is_within_the_limits_of_its_key(start: Start, keyed: dict[str, Any]) -> None:
    served = start(keys=({**keyed["keys"][0], "requests_per_minute": 2},))
    opened = Opened(served, served.post("/init_trajectory", {}, Authorization=f"Bearer {KEY}").json())
    counted = [opened.post("/messages/count_tokens", {"model": "tiny", "messages": HELLO}) for _ in range(3)]
    assert [answer.status_code for answer in counted] == [200, 200, 429]
    assert error_type(counted[2]) == "rate_limit_error"


def error_type(response: httpx.Response) -> str:
    return response.json()["error"]["type"]


@pytest.mark.parametrize(
    ("content", "structure"),
    [
        ({"a": '{[:,\\"{[:', "b": ["\\", "{", '"[']}, 4),
        ({"a\\": [{}, {}, []]}, 6),
        ("[[[[[[", 0),
        ([[], [], {"x": 1}], 5),
    ],
)
def test_structure_is_counted_outside_of_strings(content: Any, structure: int) -> None:
    sent = json.dumps(content).encode()
    assert not has_more_than(sent, structure)
    assert structure == 0 or has_more_than(sent, structure - 1)


def test_a_body_of_many_lists_is_refused_before_it_is_parsed(start: Start) -> None:
    served = start()
    for body in (b'{"metadata": {"a": [' + b"[]," * 200_000 + b"[]]}}", b'{"metadata": [' + b"1," * 1_200_000 + b"1]}"):
        assert error(served.client.post("/init_trajectory", content=body))[:2] == (413, "request_too_large")
    assert served.store.trajectories.count() == 0
