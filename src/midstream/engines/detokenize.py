"""Incremental detokenization: text is emitted once later tokens can no longer change it."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.engines.chat import ChatTokenizer

UNFINISHED = "\ufffd"
"""The decoder's output for an incomplete character."""


class TextStream:
    """Converts the ids of one response to text incrementally. End tokens have no text.

    Only the last piece is decoded again, because a token's text may depend on the token before it (the leading space of
    SentencePiece) but not on earlier ones."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._known = 0
        """Number of `_ids` already emitted; earlier ones are context."""

    def feed(self, ids: Sequence[int]) -> str:
        """Return the text that `ids` add. An incomplete character is held back."""
        self._ids += [token for token in ids if token not in self._tokenizer.end_ids]
        text = self._new()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return text

    def close(self) -> str:
        """Return the text held back, complete or not."""
        return self._new()

    def _new(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._known])
        return self._tokenizer.decode(self._ids)[len(before) :]
