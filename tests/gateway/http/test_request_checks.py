"""What is looked at before a handler is called: whose page asks, who asks, and how."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, KEY, error


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "[::1]:8100"])
def test_without_keys_it_answers_to_the_names_of_the_loopback(start: Start, host: str) -> None:
    assert start().post("/init_trajectory", {}, Host=host).status_code == 200


def test_a_page_that_has_its_name_mean_this_machine_is_refused_and_a_name_of_its_own_is_not(start: Start) -> None:
    served = start(url="http://gateway.example:8100")
    answer = served.post("/init_trajectory", {}, Host="evil.example:8100", Origin="http://evil.example:8100")
    assert error(answer)[:2] == (403, "forbidden") and "'evil.example'" in answer.text
    assert served.post("/init_trajectory", {}, Host="gateway.example:8100").status_code == 200
    assert error(served.post("/init_trajectory", {}, Origin="http://evil.example"))[0] == 403


def test_nobody_has_a_body_read_without_a_key(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    assert error(served.post("/init_trajectory", {"no such": 1}))[:2] == (401, "unauthorized")
    assert error(served.post("/init_trajectory", {"no such": 1}, Authorization=f"Bearer {KEY}"))[0] == 400
    address = httpx.URL(served.url)
    with socket.create_connection((address.host, address.port or 80)) as raw:
        raw.sendall(b"POST /init_trajectory HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        raw.settimeout(20)
        assert raw.recv(100).startswith(b"HTTP/1.1 401")  # although none of it has come


def test_an_unknown_argument_in_the_query_is_named(start: Start) -> None:
    served = start()
    answer = served.post("/submit_steps?chanel=val", {"steps": []})
    assert error(answer)[0] == 400 and "'chanel'" in answer.text
    assert served.open().post("/messages?beta=true", {"model": "tiny", "max_tokens": 9, "messages": HELLO}).is_success


def test_a_media_type_has_no_case_and_counts_where_there_is_a_body(start: Start) -> None:
    served = start()
    assert served.post("/init_trajectory", {}, Content_Type="Application/JSON").status_code == 200
    assert served.post("/init_trajectory", Content_Type="application/x-www-form-urlencoded").status_code == 200
    answer = served.post("/init_trajectory", {}, Content_Type="text/plain")
    assert error(answer)[:2] == (415, "unsupported_media_type") and "application/json" in answer.text


def test_a_method_that_is_not_there_says_which_one_is(start: Start) -> None:
    answer = start().client.get("/init_trajectory")
    assert error(answer)[0] == 405 and "POST" in answer.text and answer.headers["Allow"] == "POST"


def test_half_of_a_surrogate_pair_is_cleaned_where_it_comes_in(start: Start) -> None:
    opened = start().open()
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "whole \\ud83d\\ude42, cut \\ud83d"}]}'
    answer = opened.served.client.post(
        f"{opened.path}/chat/completions", content=body, headers={"Authorization": f"Bearer {opened.token}"}
    )
    assert answer.status_code == 200, answer.text
    assert opened.steps[0].messages[0]["content"] == "whole 🙂, cut \ufffd"
