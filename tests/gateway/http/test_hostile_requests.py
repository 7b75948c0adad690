"""Hostile requests: invalid names, broken HTTP, endless heads."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from urllib.parse import quote

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import Served, error
from tests.waiting import LIMIT_S

from midstream.gateway.http import protocol


@pytest.mark.parametrize(
    "uid",
    ["a' OR '1'='1", "a;DROP TABLE steps", "../../etc/passwd", "a/b", "a\nb", "a\x00b", "é", "x" * 201, " ", "a%b"],
)
def test_invalid_uids_are_refused_everywhere(start: Start, uid: str) -> None:
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
def test_a_hostile_request_is_not_a_5xx_and_injects_no_headers(start: Start, request_line_and_headers: str) -> None:
    served = start()
    answer = raw(served, request_line_and_headers.encode("latin-1"))
    assert answer.partition(" ")[2][:1] in ("2", "4", ""), answer
    assert "x-injected" not in answer.partition("\r\n\r\n")[0].lower()
    assert served.client.get("/health").status_code == 200


def test_silent_slow_and_endless_request_heads_are_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    served = start()
    host, port = served.url.removeprefix("http://").split(":")
    silent, slow = (socket.create_connection((host, int(port)), timeout=LIMIT_S) for _ in range(2))
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    began = time.monotonic()
    with suppress(ConnectionError):  # on a slow machine it may already be closed
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
    kept = served.client  # an open connection may be idle between requests
    assert kept.get("/health").status_code == 200
    time.sleep(1.5)
    assert kept.get("/health").status_code == 200
