"""Checks before a handler runs: origin, key, query, media type, method."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, KEY, error


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "[::1]:8100"])
def test_without_keys_loopback_names_are_accepted(start: Start, host: str) -> None:
    assert start().post("/init_trajectory", {}, Host=host).status_code == 200


def test_dns_rebinding_is_refused_and_the_configured_name_accepted(start: Start) -> None:
    served = start(url="http://gateway.example:8100")
    answer = served.post("/init_trajectory", {}, Host="evil.example:8100", Origin="http://evil.example:8100")
    assert error(answer)[:2] == (403, "forbidden") and "'evil.example'" in answer.text
    assert served.post("/init_trajectory", {}, Host="gateway.example:8100").status_code == 200
    assert error(served.post("/init_trajectory", {}, Origin="http://evil.example"))[0] == 403


def test_a_body_is_not_read_without_a_key(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    assert error(served.post("/init_trajectory", {"no such": 1}))[:2] == (401, "unauthorized")
    assert error(served.post("/init_trajectory", {"no such": 1}, Authorization=f"Bearer {KEY}"))[0] == 400
    address = httpx.URL(served.url)
    with socket.create_connection((address.host, address.port or 80)) as raw:
        raw.sendall(b"POST /init_trajectory HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        raw.settimeout(20)
        assert raw.recv(100).startswith(b"HTTP/1.1 401")  # before any of it arrived


def test_an_unknown_query_argument_is_refused_by_name(start: Start) -> None:
    served = start()
    answer = served.post("/submit_steps?chanel=val", {"steps": []})
    assert error(answer)[0] == 400 and "'chanel'" in answer.text
    assert served.open().post("/messages?beta=true", {"model": "tiny", "max_tokens": 9, "messages": HELLO}).is_success


def test_the_media_type_is_case_insensitive_and_required_with_a_body(start: Start) -> None:
    served = start()
    assert served.post("/init_trajectory", {}, Content_Type="Application/JSON").status_code == 200
    assert served.post("/init_trajectory", Content_Type="application/x-www-form-urlencoded").status_code == 200
    answer = served.post("/init_trajectory", {}, Content_Type="text/plain")
    assert error(answer)[:2] == (415, "unsupported_media_type") and "application/json" in answer.text


def test_a_wrong_method_is_405_with_the_allowed_one(start: Start) -> None:
    answer = start().client.get("/init_trajectory")
    assert error(answer)[0] == 405 and "POST" in answer.text and answer.headers["Allow"] == "POST"


def test_a_lone_surrogate_is_replaced_on_arrival(start: Start) -> None:
    opened = start().open()
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "whole \\ud83d\\ude42, cut \\ud83d"}]}'
    answer = opened.served.client.post(
        f"{opened.path}/chat/completions", content=body, headers={"Authorization": f"Bearer {opened.token}"}
    )
    assert answer.status_code == 200, answer.text
    assert opened.steps[0].messages[0]["content"] == "whole 🙂, cut \ufffd"
