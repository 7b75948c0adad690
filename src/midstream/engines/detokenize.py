"""Text of tokens as they come: a piece is given out once later tokens can no longer change it."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.engines.chat import ChatTokenizer

UNFINISHED = "\ufffd"
"""How a decoder writes bytes that are no whole character yet."""


class TextStream:
    """Turns the ids of one response into text, a few at a time. End tokens have no text.

    Only the last pieces are decoded again, as a token's text may depend on the one before it (the leading space of
    SentencePiece) but not on those before that."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._known = 0
        """How many of `_ids` have been given out; those before them are context."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` add. What may be half of a character waits for the rest of it."""
        self._ids += [token for token in ids if token not in self._tokenizer.end_ids]
        text = self._new()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return text

    def close(self) -> str:
        """What waits, whole or not."""
        return self._new()

    def _new(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._known])
        return self._tokenizer.decode(self._ids)[len(before) :]
