"""How a request comes in: compressed or not, with one key or two."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, KEY, Opened, error

BODY = json.dumps({"model": "tiny", "messages": HELLO}).encode()


def _bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def post(opened: Opened, content: bytes, encoding: str) -> Any:
    headers = {"Authorization": f"Bearer {opened.token}", "Content-Encoding": encoding}
    return opened.served.client.post(f"{opened.path}/chat/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", _bare(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
)
def test_a_compressed_body_is_read(start: Start, encoding: str, packed: bytes) -> None:
    opened = start().open()
    assert post(opened, packed, encoding).status_code == 200
    assert len(opened.steps) == 1


def test_what_cannot_be_decompressed_is_told_so(start: Start) -> None:
    opened = start(limits={"body_mb": 1}).open()
    status, _, told = error(post(opened, b"\x1b\x00", "br"))
    assert status == 415 and "'br'" in told and "gzip and deflate" in told.replace("gzip, deflate", "gzip and deflate")
    status, _, told = error(post(opened, b"no gzip", "gzip"))
    assert status == 400 and "no valid gzip" in told
    status, _, told = error(post(opened, gzip.compress(b" " * 50_000_000), "gzip"))
    assert status == 413
    assert error(post(opened, gzip.compress(BODY)[:30], "gzip"))[0] == 400
    assert opened.steps == ()


def test_of_two_keys_the_valid_one_counts(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    told = served.post("/init_trajectory", {}, Authorization=f"Bearer {KEY}").json()
    opened = Opened(served, told)
    body = {"model": "tiny", "messages": HELLO}
    for headers in (
        {"Authorization": "Bearer of another service", "X_Api_Key": opened.token},
        {"Authorization": f"Bearer {opened.token}", "X_Api_Key": "of another service"},
        {"Authorization": "Basic YTpi", "X_Api_Key": opened.token},
    ):
        assert served.post("/v1/chat/completions", body, **headers).status_code == 200
    neither = {"Authorization": "Bearer one", "X_Api_Key": "two"}
    assert served.post("/v1/chat/completions", body, **neither).status_code == 401


def test_a_token_counts_where_everybody_is_let_in(start: Start) -> None:
    served = start()
    opened = served.open()
    headers = {"Authorization": "Bearer of another service", "X_Api_Key": opened.token}
    response = served.post("/v1/chat/completions", {"model": "tiny", "messages": HELLO}, **headers)
    assert response.status_code == 200 and len(opened.steps) == 1
