"""What clumsy users and hostile strangers try: each hears what to do, and nothing is lost or told."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import Served, error
from tests.waiting import LIMIT_S, MovedClock

from midstream import api
from midstream.core.errors import UserError
from midstream.gateway.config import GatewayConfig
from midstream.gateway.http import protocol


def config(tiny_path: Path, tmp_path: Path, **given: Any) -> GatewayConfig:
    settings = {"model": str(tiny_path), "store": str(tmp_path / "s.sqlite"), "port": 0, "engine": ["scripted"]}
    return api.load_gateway_config(given={**settings, **given})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"limts": {}}, "did you mean 'limits'"),
        ({"limits": {"concurency": 3}}, "did you mean 'limits.concurrency'|did you mean 'concurrency'"),
        ({"port": 99999}, "port"),
        ({"engine": ["torhc"]}, "the engine 'torhc' must be the URL of a vLLM server, or alone: torch or scripted"),
        ({"engine": ["torch", "http://localhost:8000"]}, "the engine 'torch' must be"),
        ({"engine": []}, "there must be an engine"),
        ({"script": {"replies": []}}, "one reply at least"),
        ({"sampling": {"seed": 1}}, "sampling.seed cannot be held fixed"),
        ({"keys": [{"name": "a", "env": "A"}, {"name": "a", "env": "B"}]}, "two keys are called 'a'"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_by_name(
    tiny_path: Path, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        config(tiny_path, tmp_path, **given)


def test_what_is_not_there_or_taken_stops_the_start(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDSTREAM_HOME", str(tmp_path / "home"))
    (tmp_path / "text.sqlite").write_text("this is a letter to somebody, and no database at all, " * 40)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, told in (
            ({"port": port}, f"cannot listen on 127.0.0.1:{port}"),
            ({"model": str(tmp_path / "nothing")}, "nothing"),
            ({"store": str(tmp_path / "text.sqlite")}, "not a database"),
            ({"store": str(tmp_path / "no" / "folder" / "s.sqlite")}, "cannot open"),
            ({"store": str(tmp_path)}, "cannot open"),
            ({"follow": str(tmp_path / "notes")}, "no run directory"),
            ({"follow": str(tmp_path / "text.sqlite")}, "no run directory"),
            ({"tool_format": "telepathy"}, "telepathy"),
        ):
            with pytest.raises(UserError, match=told):
                api.serve(config(tiny_path, tmp_path, **given))


def test_a_full_disk_costs_the_calls_it_has_no_room_for_and_nothing_that_was_acknowledged(start: Start) -> None:
    served = start("word " * 300)
    opened = served.open()
    wal = served.where.with_name(f"{served.where.name}-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 60_000, hard))
    try:
        answers = [opened.chat() for _ in range(30)]
        assert served.post("/init_trajectory", {}).status_code == 503
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused and {error(answer)[0] for answer in refused} == {503}
    assert "disk" in error(refused[0])[2] and refused[0].headers["retry-after"]
    kept = {f"chatcmpl-{step.metadata['answer_id']}" for step in opened.steps}
    assert kept == {answer.json()["id"] for answer in answers if answer.status_code == 200} != set()
    assert opened.chat().status_code == 200 and opened.complete(reward=1.0).status_code == 200


def test_a_store_deleted_under_it_is_noticed_before_anything_more_is_acknowledged(start: Start) -> None:
    served = start()
    opened = served.open()
    for file in served.where.parent.glob("store.sqlite*"):
        file.unlink()
    for refused in (opened.chat(), opened.complete(), served.post("/init_trajectory", {})):
        status, _, told = error(refused)
        assert status == 503 and "was deleted or replaced" in told and "start again" in told


@pytest.mark.parametrize(
    "uid",
    ["a' OR '1'='1", "a;DROP TABLE steps", "../../etc/passwd", "a/b", "a\nb", "a\x00b", "é", "x" * 201, " ", "a%b"],
)
def test_a_uid_is_a_plain_name_wherever_it_comes_in(start: Start, uid: str) -> None:
    served = start()
    other = served.open(trajectory_uid="a")
    other.chat()
    for name in ("trajectory_uid", "prompt_uid", "channel"):
        assert error(served.post("/init_trajectory", {name: uid}))[0] == 400
    for path in (f"/trajectories/{quote(uid)}/heartbeat", f"/complete_trajectory/{quote(uid)}"):
        assert served.post(path).status_code in (400, 404, 405), path
    assert [t.uid for t in served.store.trajectories.iterate()] == ["a"] and len(other.steps) == 1


def raw(served: Served, request: bytes) -> str:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")


@pytest.mark.parametrize(
    "request_line_and_headers",
    [
        "POST /init_trajectory HTTP/1.1\r\nHost: [\r\nContent-Length: 2\r\n\r\n{}",
        "POST /init_trajectory HTTP/1.1\r\nHost: a b/../c?d#e@f\r\nContent-Length: 2\r\n\r\n{}",
        "POST /init_trajectory HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "POST /init_trajectory HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}",
        "POST /init_trajectory HTTP/1.1\r\nHost: x\r\nContent-Type: \xff\xfe;;charset=\r\nContent-Length: 2\r\n\r\n{}",
        "GET /trajectories/%00%0d%0aX-Injected:%201 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET //..%2f..%2fetc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /{'a' * 60000} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        "\x00\x01\x02 nonsense\r\n\r\n",
    ],
)
def test_a_hostile_request_is_no_5xx_and_puts_nothing_into_the_headers(
    start: Start, request_line_and_headers: str
) -> None:
    served = start()
    answer = raw(served, request_line_and_headers.encode("latin-1"))
    assert answer.partition(" ")[2][:1] in ("2", "4", ""), answer
    assert "x-injected" not in answer.partition("\r\n\r\n")[0].lower()
    assert served.client.get("/health").status_code == 200


def test_connections_that_say_nothing_or_never_come_to_the_point_are_closed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    served = start()
    host, port = served.url.removeprefix("http://").split(":")
    silent, slow = (socket.create_connection((host, int(port)), timeout=LIMIT_S) for _ in range(2))
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    began = time.monotonic()
    with suppress(ConnectionError):  # where this test is so slow that it is closed already
        for _ in range(3):
            time.sleep(0.1)
            slow.sendall(b"X-More: 1\r\n")
    for connection in (silent, slow):
        with suppress(ConnectionError):
            assert connection.recv(100) == b""
    assert time.monotonic() - began > 0.3
    silent.close()
    slow.close()
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as endless:
        endless.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"x" * (protocol.HEAD_BYTES + 1))
        assert endless.recv(100).startswith(b"HTTP/1.1 400")
    kept = served.client  # one that keeps its connection open between requests may be slow to ask again
    assert kept.get("/health").status_code == 200
    time.sleep(1.5)
    assert kept.get("/health").status_code == 200


def test_trajectories_opened_and_abandoned_leave_no_trace_in_memory(start: Start, clock: MovedClock) -> None:
    served = start(expiry_s=30)

    async def abandon(count: int) -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=LIMIT_S) as client:
            for first in range(0, count, 50):
                await asyncio.gather(*(client.post("/init_trajectory") for _ in range(min(50, count - first))))

    asyncio.run(abandon(200))
    own = served.gateway.trajectories
    clock.advance_until(lambda: not len(own), 1.0)
    assert (len(own._live), len(own._silent_since), len(own._locks._locks)) == (0, 0, 0)
    assert served.store.trajectories.count(status="timed_out") == 200  # pyright: ignore[reportArgumentType]
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="never_called"}') == 200


@pytest.mark.parametrize("name", ["seed", "max_tokens", "top_k"])
def test_a_number_that_no_engine_takes_is_refused_by_name(start: Start, name: str) -> None:
    asked: dict[str, Any] = {name: 10**400}
    status, _, told = error(start().open().chat(**asked))
    assert status == 400 and name in told
