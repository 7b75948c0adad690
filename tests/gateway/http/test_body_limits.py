"""Limits on the size, structure and arrival of request bodies."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import error
from tests.waiting import LIMIT_S

from midstream.gateway.http.structure import exceeds


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


def test_a_body_that_does_not_arrive_is_408(start: Start) -> None:
    served = start(limits={"body_timeout_s": 0.3})
    host, port = served.url.removeprefix("http://").split(":")
    head = f"POST /init_trajectory HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode())
        answer = ""
        while "}" not in answer:  # head and body may arrive separately
            answer += connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 408") and "request_timeout" in answer


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
    assert not exceeds(sent, structure)
    assert structure == 0 or exceeds(sent, structure - 1)


def test_a_body_of_many_lists_is_refused_before_it_is_parsed(start: Start) -> None:
    served = start()
    for body in (b'{"metadata": {"a": [' + b"[]," * 200_000 + b"[]]}}", b'{"metadata": [' + b"1," * 1_200_000 + b"1]}"):
        assert error(served.client.post("/init_trajectory", content=body))[:2] == (413, "request_too_large")
    assert served.store.trajectories.count() == 0
