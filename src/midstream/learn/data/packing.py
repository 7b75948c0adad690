"""Packs sequences into passes of bounded size, and restores the original order of per-token results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from midstream.learn.model.log_probs import TokenSequence

T = TypeVar("T")
FURTHER = 1.25
"""How much longer than its longest item a pass may be where that alone exceeds the bound: the steps of a long
conversation, and attempts at a long prompt, share nearly all of it."""


def pack_sequences(items: Sequence[T], max_tokens: int, sequence: Callable[[T], TokenSequence]) -> list[list[T]]:
    """Pack items into passes of at most `max_tokens` distinct tokens, or of `FURTHER` times an item that alone exceeds
    that. A pass has sequences of one adapter only.

    Items with a shared prefix become neighbours regardless of their order, and cuts minimize the tokens computed twice.
    """
    by_adapter: dict[str, list[T]] = {}
    for item in items:
        by_adapter.setdefault(sequence(item).adapter, []).append(item)
    return [pack for name in sorted(by_adapter) for pack in _packed(by_adapter[name], max_tokens, sequence)]


def _packed(items: Sequence[T], max_tokens: int, sequence: Callable[[T], TokenSequence]) -> list[list[T]]:
    ordered = sorted(((s.prompt_ids + s.response_ids, n) for n, s in enumerate(map(sequence, items))))
    tokens = [ids for ids, _ in ordered]
    shared = [0, *(_shared(a, b) for a, b in pairwise(tokens))]
    # best[n] for the first n items: fewest tokens, fewest passes, and start of the last pass.
    best = [(0, 0, 0)]
    for end in range(1, len(tokens) + 1):
        size = longest = len(tokens[end - 1])
        choices = [(best[end - 1][0] + size, best[end - 1][1] + 1, end - 1)]
        for start in range(end - 2, -1, -1):
            # Items are sorted, so the prefix shared with the predecessor is the longest shared prefix.
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
        packs.append([items[n] for _, n in ordered[start:end]])
        end = start
    return packs[::-1]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class ScatterIndex:
    """Collects per-token results of passes and restores the order of `sequences`."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._sizes = [len(sequence.response_ids) for sequence in sequences]
        self._values: dict[int, list[float]] = {}

    def add(self, pack: Sequence[int], values: Tensor) -> None:
        """Add `values` [tokens] of the sequences with the indices in `pack`, in that order."""
        parts = values.split([self._sizes[n] for n in pack])
        self._values.update((n, part.tolist()) for n, part in zip(pack, parts, strict=True))

    def in_order(self) -> list[float]:
        """Return all values in the order of `sequences`; empty when none were added."""
        return [value for n in sorted(self._values) for value in self._values[n]]
