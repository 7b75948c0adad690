"""The bytes of tokens add up to the text for any vocabulary, including partial characters."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from midstream.engines.chat import ChatTokenizer
from midstream.engines.token_bytes import TokenBytes

TEXTS = ("plain text", " led by a space", "héllo 👋 日本", "a\n\tb", "<|im_end|>", "\u0000\u007f\u00ad\u0100")


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_add_up_to_the_text(tiny_tokenizer: ChatTokenizer, text: str) -> None:
    ids = tiny_tokenizer.encode(text)
    assert b"".join(map(tiny_tokenizer.token_bytes, ids)).decode() == text


def sentencepiece() -> Any:
    """A small SentencePiece vocabulary: `▁` for a space, bytes for missing characters."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é"]
    model = models.BPE({piece: place for place, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>")])
    return tokenizer


def test_sentencepiece_tokens_add_up_to_the_text() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("a b é👋<s>").ids
    assert b"".join(map(TokenBytes(tokenizer), ids)).decode() == " a b é👋<s>"
    assert [TokenBytes(tokenizer)(token) for token in tokenizer.encode("👋").ids[1:]] == [
        b"\xf0",
        b"\x9f",
        b"\x91",
        b"\x8b",
    ]
