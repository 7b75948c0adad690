"""The tokens that a constraint allows at each position: the same masks for sampling and for learning."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from midstream.core.errors import EngineError, TrainingError, Unsupported
from midstream.core.types import Constraint
from midstream.engines.chat import ChatTokenizer
from midstream.engines.grammar import compiled

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64
"""Most compiled grammars in the cache."""
MASK_BYTES = 256 << 20
"""Most bytes of masks of recorded responses in the cache."""


class Grammars:
    """Compiles constraints for one tokenizer, and caches them. Compiling may take a second: call from a thread."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None
        self._first = lru_cache(KEPT)(self._compile)
        self._masks: OrderedDict[tuple[Constraint, tuple[int, ...]], Tensor] = OrderedDict()
        self._mask_bytes = 0

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """Return a matcher at the start of `constraint`; raises `Unsupported` with the reason if it cannot be
        compiled."""
        with self._lock:
            return self._first(constraint).deep_copy()

    def masks(self, constraint: Constraint, ids: tuple[int, ...]) -> Tensor:
        """Return the tokens allowed before each token of the response `ids`, as bits [len(ids), bytes] (see `as_bool`).

        Raises `TrainingError` for a response that the constraint does not allow."""
        key = (constraint, ids)
        with self._lock:
            found = self._masks.get(key)
            if found is not None:
                self._masks.move_to_end(key)
                return found
        found = self._recomputed(constraint, ids)
        with self._lock:
            self._mask_bytes += 0 if key in self._masks else found.numel()
            self._masks[key] = found
            while self._mask_bytes > MASK_BYTES and len(self._masks) > 1:
                self._mask_bytes -= self._masks.popitem(last=False)[1].numel()
        return found

    def _recomputed(self, constraint: Constraint, ids: tuple[int, ...]) -> Tensor:
        try:
            matcher = self.matcher(constraint)
        except Unsupported as error:
            raise TrainingError(f"the constraint of a recorded step cannot be followed here: {error}") from None
        bits = _empty_bits(len(ids), self._vocabulary)
        for place, token in enumerate(ids):
            if place:
                matcher.consume_token(ids[place - 1])
            try:
                _fill(matcher, bits, place)
                refused = not bits[place, token >> 5] >> (token & 31) & 1
            except (EngineError, IndexError):
                refused = True
            if refused:
                raise TrainingError(
                    f"token {token} at position {place} of a recorded response is not allowed by the "
                    f"{constraint.kind} constraint recorded with it: {constraint.grammar[:200]}",
                    "train with the tokenizer and the version of llguidance that sampled it",
                )
        return torch.from_numpy(bits.view("uint8"))

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance.hf import from_tokenizer

        if self._made is None:
            ends = sorted(self._tokenizer.end_ids) or None
            try:
                self._made = from_tokenizer(self._tokenizer.backend, self._vocabulary, ends)
            except ValueError as error:
                raise Unsupported(f"no constraints with the tokenizer of {self._tokenizer.name}: {error}") from None
        return compiled(constraint, self._made)


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """Masks for some rows of logits: `rows` is ascending, and `bits` [len(rows), bytes] has the tokens of each."""

    rows: tuple[int, ...]
    bits: Tensor

    def between(self, start: int, stop: int, vocabulary: int) -> tuple[Tensor, Tensor] | None:
        """Return the rows from `start` up to `stop`, counted from `start`, and their refused tokens as bool [rows,
        vocabulary]; None if all these rows allow every token."""
        low, high = bisect_left(self.rows, start), bisect_left(self.rows, stop)
        if low == high:
            return None
        bits = self.bits[low:high]
        rows = torch.tensor([row - start for row in self.rows[low:high]], device=bits.device)
        return rows, ~as_bool(bits, vocabulary)


def next_allowed(matcher: LLMatcher, vocabulary: int) -> Tensor:
    """Return whether each token [vocabulary] may come next. Raises `EngineError` if the grammar cannot be continued."""
    bits = _empty_bits(1, vocabulary)
    _fill(matcher, bits, 0)
    return as_bool(torch.from_numpy(bits.view("uint8")), vocabulary)[0]


def as_bool(bits: Tensor, vocabulary: int) -> Tensor:
    """Unpack `bits` [n, bytes], the lowest bit first, to bool [n, vocabulary]."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, :, None] >> places & 1).bool().flatten(1)[:, :vocabulary]


def _empty_bits(count: int, vocabulary: int) -> Any:
    # Not llguidance.torch, which compiles a kernel with torch.compile.
    from llguidance.numpy import allocate_token_bitmask

    return allocate_token_bitmask(count, vocabulary)


def _fill(matcher: LLMatcher, bits: Any, row: int) -> None:
    from llguidance.numpy import fill_next_token_bitmask

    if not matcher.is_error():
        fill_next_token_bitmask(matcher, bits, row)
    if matcher.is_error():
        raise EngineError(f"the response can no longer satisfy its grammar: {matcher.get_error()}")


def join_rows(parts: Sequence[tuple[Sequence[int], Tensor]], device: torch.device) -> AllowedTokens | None:
    """Join `parts`, rows and their bits, in ascending order of rows; None without any."""
    rows = tuple(row for part, _ in parts for row in part)
    return AllowedTokens(rows, torch.cat([bits for _, bits in parts]).to(device)) if rows else None
