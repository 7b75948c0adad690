"""Compressed request bodies."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Opened, error

from midstream.gateway.http import decompression
from midstream.gateway.http.decompression import PART, decompressor
from midstream.gateway.http.errors import ApiError

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
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", _bare(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
    ids=["gzip", "zlib", "deflate", "identity", "none"],
)
def test_a_compressed_body_is_read(start: Start, encoding: str, packed: bytes) -> None:
    opened = start().open()
    assert post(opened, packed, encoding).status_code == 200
    assert len(opened.steps) == 1


def test_an_invalid_or_unsupported_compression_is_refused(start: Start) -> None:
    opened = start(limits={"body_mb": 1}).open()
    status, _, told = error(post(opened, b"\x1b\x00", "br"))
    assert status == 415 and "'br'" in told and "gzip and deflate" in told.replace("gzip, deflate", "gzip and deflate")
    status, _, told = error(post(opened, b"no gzip", "gzip"))
    assert status == 400 and "not valid gzip" in told
    status, _, told = error(post(opened, gzip.compress(b" " * 50_000_000), "gzip"))
    assert status == 413
    assert opened.steps == ()


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", _bare)]
)
def test_a_broken_compressed_body_is_refused(start: Start, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    opened = start().open()
    packed = pack(BODY)
    for content, why in (
        (packed[:-1], "cut off"),
        (packed[:30], "cut off"),
        (packed + pack(b" more"), "data follows its end"),
        (packed + b"\0", "data follows its end"),
    ):
        status, _, told = error(post(opened, content, encoding))
        assert status == 400 and why in told, told
    assert opened.steps == ()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_decompression_yields_small_parts(encoding: str) -> None:
    body = json.dumps(list(range(300_000))).encode() + b" " * 5_000_000
    packed = (gzip.compress if encoding == "gzip" else zlib.compress)(body)
    for size in (1000, len(packed)):
        state = decompressor(encoding)
        assert state is not None
        parts = [part for at in range(0, len(packed), size) for part in state.parts(packed[at : at + size])]
        state.end()
        assert b"".join(parts) == body and max(map(len, parts)) <= PART


def test_empty_input_after_the_end_of_zstd_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(ZstdDecompressor=Frame, ZstdError=zlib.error)
    monkeypatch.setattr(decompression, "_zstd_module", lambda: module)
    state = decompressor("zstd")
    assert state is not None
    assert b"".join([*state.parts(b"frame"), *state.parts(b"")]) == b"frame"
    state.end()
    with pytest.raises(ApiError, match="follows its end"):
        list(state.parts(b"more"))


class Frame:
    """Mimics `compression.zstd` for a frame that ends with its first input."""

    eof, needs_input, unused_data = False, True, b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self.eof:
            raise EOFError("already at the end of a Zstandard frame")
        self.eof = True
        return data
