"""The bytes of single tokens. Decoding a token alone loses them if it is part of a character."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


class TokenBytes:
    """Bytes by token id, for a backend of the package `tokenizers`.

    Byte-level vocabularies (GPT-2's) write each byte as one printable character; SentencePiece vocabularies write a
    space as `▁` and a byte of a character they lack as `<0x..>`; of all others a token is the text it decodes to."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._added = {token: added.content for token, added in backend.get_added_tokens_decoder().items()}
        self._kinds = _kinds(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else set()

    def __call__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if "ByteLevel" in self._kinds:
            return bytes(_alphabet()[sign] for sign in piece)
        if "ByteFallback" in self._kinds and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if self._kinds & {"ByteFallback", "Metaspace"}:
            return piece.replace(_SPACE, " ").encode()
        return self._backend.decode([token], skip_special_tokens=False).encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """Return the types of a decoder and of the decoders it chains."""
    return {decoder["type"]}.union(*(_kinds(one) for one in decoder.get("decoders", ())))


@lru_cache(1)
def _alphabet() -> dict[str, int]:
    """Return GPT-2's bytes by the character that represents each: printable ones themselves, the others from U+0100 on.
    https://github.com/openai/gpt-2/blob/master/src/encoder.py (`bytes_to_unicode`)"""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
