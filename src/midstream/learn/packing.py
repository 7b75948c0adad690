"""Sequences into passes of bounded size, and what passes say back into the order of the sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from midstream.learn.log_probs import TokenSequence

T = TypeVar("T")
FURTHER = 1.25
"""How much longer than its longest item a pass may be where that alone exceeds the bound: the steps of a long
conversation, and attempts at a long prompt, share nearly all of it."""


def packed(items: Sequence[T], max_tokens: int, sequence: Callable[[T], TokenSequence]) -> list[list[T]]:
    """Passes of at most `max_tokens` distinct tokens, or, where one item has more, of `FURTHER` times that. Items that
    share a prefix are neighbours in them, whatever their order was, and cuts are where the fewest tokens are computed
    twice."""
    spelled = sorted(((s.prompt_ids + s.response_ids, n) for n, s in enumerate(map(sequence, items))))
    tokens = [ids for ids, _ in spelled]
    shared = [0, *(_shared(a, b) for a, b in pairwise(tokens))]
    # best[n]: the fewest tokens that the first n take, in how few passes, and where the last of these begins.
    best = [(0, 0, 0)]
    for end in range(1, len(tokens) + 1):
        size = longest = len(tokens[end - 1])
        choices = [(best[end - 1][0] + size, best[end - 1][1] + 1, end - 1)]
        for start in range(end - 2, -1, -1):
            # As they are sorted, what each shares with the one before is all it shares.
            size += len(tokens[start]) - shared[start + 1]
            longest = max(longest, len(tokens[start]))
            if size > max(max_tokens, longest * FURTHER if longest > max_tokens else 0):
                break
            choices.append((best[start][0] + size, best[start][1] + 1, start))
        best.append(min(choices))
    packs: list[list[T]] = []
    end = len(tokens)
    while end:
        start = best[end][2]
        packs.append([items[n] for _, n in spelled[start:end]])
        end = start
    return packs[::-1]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the beginning of both."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class ScatterIndex:
    """Numbers of each response token, put into the order of `sequences` as passes give them in another."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._sizes = [len(sequence.response_ids) for sequence in sequences]
        self._of: dict[int, list[float]] = {}

    def take(self, pack: Sequence[int], values: Tensor) -> None:
        """`values` [tokens] of the sequences numbered in `pack`, one after another."""
        parts = values.split([self._sizes[n] for n in pack])
        self._of.update((n, part.tolist()) for n, part in zip(pack, parts, strict=True))

    def all(self) -> list[float]:
        """All of them; empty when none were taken."""
        return [value for n in sorted(self._of) for value in self._of[n]]
