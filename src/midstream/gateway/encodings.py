"""Compressed request bodies: `gzip` and `deflate`, and `zstd` where a module for it is installed."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from midstream.gateway.errors import ApiError


def decompressor(encoding: str) -> Callable[[bytes, int], bytes] | None:
    """What decompresses a body that comes in pieces, in the `Content-Encoding` given; None where it is not compressed.

    The function returned takes a piece and the most bytes that may come of it, and gives one byte more at most when
    there are more. Raises `ApiError`: 415 for an encoding that is not read here, 400 for a body that is damaged."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return _zlib(zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), name)
    if name == "deflate":
        return _deflate()
    zstd = _zstd_module() if name == "zstd" else None
    if zstd is None:
        known = "gzip, deflate and zstd" if _zstd_module() is not None else "gzip and deflate"
        raise ApiError(415, f"a body in the encoding '{encoding[:40]}' is not read here: send {known}, or none of them")
    return _zstd(zstd)


def _zlib(state: Any, name: str) -> Callable[[bytes, int], bytes]:
    def take(piece: bytes, most: int) -> bytes:
        try:
            # One of no bytes means no limit to zlib.
            return state.decompress(piece, most + 1)
        except zlib.error as error:
            raise ApiError(400, f"the body is no valid {name}: {error}") from None

    return take


def _deflate() -> Callable[[bytes, int], bytes]:
    """Deflate in zlib's wrapping, as HTTP has it, or bare, as some clients send it."""
    chosen: list[Callable[[bytes, int], bytes]] = []

    def take(piece: bytes, most: int) -> bytes:
        if not piece:
            return b""
        if not chosen:
            # zlib's first byte names the method in its lower half (8: deflate), the window's size in the other.
            wrapped = piece[0] & 0x0F == 8 and piece[0] >> 4 <= 7
            chosen.append(_zlib(zlib.decompressobj(wbits=zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS), "deflate"))
        return chosen[0](piece, most)

    return take


def _zstd_module() -> Any:
    for name in ("compression.zstd", "backports.zstd"):  # from Python 3.14 on, and a package for those before it
        with suppress(ImportError):
            return importlib.import_module(name)
    return None


def _zstd(zstd: Any) -> Callable[[bytes, int], bytes]:
    state = zstd.ZstdDecompressor()

    def take(piece: bytes, most: int) -> bytes:
        try:
            return state.decompress(piece, most + 1)
        except zstd.ZstdError as error:
            raise ApiError(400, f"the body is no valid zstd: {error}") from None

    return take
