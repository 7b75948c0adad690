"""Compressed request bodies: `gzip` and `deflate`, and `zstd` where a module for it is installed."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from midstream.gateway.http.errors import ApiError

PART = 64 * 1024
"""Most bytes that are decompressed at once."""


class Decompressor(Protocol):
    """Decompresses one body that comes in pieces."""

    def parts(self, piece: bytes) -> Iterator[bytes]:
        """What `piece` decompresses to, in parts of at most `PART` bytes, each made when it is asked for. Raises
        `ApiError` 400 for a body that is damaged or goes on after its end."""
        ...

    def end(self) -> None:
        """Raises `ApiError` 400 when the body is cut off: its last piece has come, and not its end."""
        ...


def decompressor(encoding: str) -> Decompressor | None:
    """What decompresses a body in the `Content-Encoding` given; None where it is not compressed. Raises `ApiError` 415
    for an encoding that is not read here."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return _Zlib("gzip", zlib.MAX_WBITS | 16)
    if name == "deflate":
        return _Zlib(name, None)
    zstd = _zstd_module() if name == "zstd" else None
    if zstd is None:
        known = "gzip, deflate and zstd" if _zstd_module() is not None else "gzip and deflate"
        raise ApiError(415, f"a body in the encoding '{encoding[:40]}' is not read here: send {known}, or none of them")
    return _Zstd(zstd)


class _Zlib:
    """Without `wbits` it is deflate: in zlib's format, as HTTP defines it, or raw, as some clients send it."""

    def __init__(self, name: str, wbits: int | None) -> None:
        self._name, self._wbits = name, wbits
        self._state: Any = None

    def parts(self, piece: bytes) -> Iterator[bytes]:
        if not piece:
            return
        if self._state is None:
            self._state = zlib.decompressobj(wbits=_wbits_of(piece) if self._wbits is None else self._wbits)
        state, rest = self._state, piece
        while not state.eof:
            try:
                part = state.decompress(rest, PART)
            except zlib.error as error:
                raise _invalid(self._name, str(error)) from None
            rest = state.unused_data if state.eof else state.unconsumed_tail
            yield part
            if not rest and len(part) < PART:  # a full part may leave output in zlib that needs no more input
                break
        if state.eof and rest:
            raise _goes_on(self._name)

    def end(self) -> None:
        if self._state is not None and not self._state.eof:
            raise _cut_off(self._name)


class _Zstd:
    def __init__(self, zstd: Any) -> None:
        self._state, self._error, self._begun = zstd.ZstdDecompressor(), zstd.ZstdError, False

    def parts(self, piece: bytes) -> Iterator[bytes]:
        if not piece:
            return
        self._begun = True
        state, rest = self._state, piece
        while not state.eof:
            try:
                part = state.decompress(rest, PART)
            except self._error as error:
                raise _invalid("zstd", str(error)) from None
            rest = state.unused_data if state.eof else b""  # it keeps what it has not read
            yield part
            if not state.eof and state.needs_input:
                break
        if state.eof and rest:
            raise _goes_on("zstd")

    def end(self) -> None:
        if self._begun and not self._state.eof:
            raise _cut_off("zstd")


def _wbits_of(piece: bytes) -> int:
    # zlib's first byte has the method in its lower half (8: deflate) and the window's size in the other.
    wrapped = piece[0] & 0x0F == 8 and piece[0] >> 4 <= 7
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


def _zstd_module() -> Any:
    for name in ("compression.zstd", "backports.zstd"):  # from Python 3.14 on, and a package for those before it
        with suppress(ImportError):
            return importlib.import_module(name)
    return None


def _invalid(name: str, why: str) -> ApiError:
    return ApiError(400, f"the body is no valid {name}: {why}")


def _goes_on(name: str) -> ApiError:
    return _invalid(name, "it goes on after its end; send one member or frame")


def _cut_off(name: str) -> ApiError:
    return _invalid(name, "it is cut off before its end")
