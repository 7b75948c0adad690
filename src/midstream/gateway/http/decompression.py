"""Decompresses request bodies: `gzip` and `deflate`, and `zstd` if a module for it is installed."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from midstream.gateway.http.errors import ApiError

PART = 64 * 1024
"""Largest part in bytes that is decompressed at once."""


class Decompressor(Protocol):
    """Decompresses one body that arrives in pieces."""

    def parts(self, piece: bytes) -> Iterator[bytes]:
        """Yield what `piece` decompresses to, lazily, in parts of at most `PART` bytes. Raises `ApiError` 400 for a
        damaged body, and for data after its end."""
        ...

    def end(self) -> None:
        """Check after the last piece. Raises `ApiError` 400 if the body is cut off."""
        ...


def decompressor(encoding: str) -> Decompressor | None:
    """Return the decompressor for a `Content-Encoding`; None for none. Raises `ApiError` 415 for an unsupported one."""
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
        raise ApiError(415, f"the content encoding '{encoding[:40]}' is not supported: send {known}, or no encoding")
    return _Zstd(zstd)


class _Zlib:
    """`gzip`, or `deflate` if `wbits` is None: in zlib's format, as HTTP defines it, or raw, as some clients do."""

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
            raise _data_after_end(self._name)

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
            rest = state.unused_data if state.eof else b""  # the decompressor keeps unread input
            yield part
            if not state.eof and state.needs_input:
                break
        if state.eof and rest:
            raise _data_after_end("zstd")

    def end(self) -> None:
        if self._begun and not self._state.eof:
            raise _cut_off("zstd")


def _wbits_of(piece: bytes) -> int:
    # In zlib's format the lower half of the first byte is the method (8: deflate), the upper half the window size.
    wrapped = piece[0] & 0x0F == 8 and piece[0] >> 4 <= 7
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


def _zstd_module() -> Any:
    for name in ("compression.zstd", "backports.zstd"):  # Python 3.14, and its backport
        with suppress(ImportError):
            return importlib.import_module(name)
    return None


def _invalid(name: str, why: str) -> ApiError:
    return ApiError(400, f"the body is not valid {name}: {why}")


def _data_after_end(name: str) -> ApiError:
    return _invalid(name, "data follows its end; send one member or frame")


def _cut_off(name: str) -> ApiError:
    return _invalid(name, "it is cut off")
