"""Logits processing before a token is picked: penalties, and grammar constraints.

Reported log-probabilities are those before processing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from midstream.core.errors import EngineError, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.engines.base import Constraint
from midstream.engines.chat import ChatTokenizer
from midstream.engines.grammar import compiled
from midstream.engines.torch.sampling import penalise

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64
"""Most compiled grammars in the cache."""


class Grammars:
    """Compiles and caches grammars for one tokenizer. Compiling may take a second: call from a thread."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None
        self._first = lru_cache(KEPT)(self._compile)

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """Return a matcher at the start of `constraint`; raises `Unsupported` with the reason if it cannot be
        compiled."""
        with self._lock:
            return self._first(constraint).deep_copy()

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance.hf import from_tokenizer

        if self._made is None:
            ends = sorted(self._tokenizer.end_ids) or None
            try:
                self._made = from_tokenizer(self._tokenizer.backend, self._vocabulary, ends)
            except ValueError as error:
                raise Unsupported(f"no constraints with the tokenizer of {self._tokenizer.name}: {error}") from None
        return compiled(constraint, self._made)


class Steering:
    """Processes the logits of one response."""

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], matcher: LLMatcher | None) -> None:
        self._sampling, self._prompt_ids, self._matcher = sampling, prompt_ids, matcher

    def logits(self, logits: Tensor, response: Sequence[int]) -> Tensor:
        """Return processed `logits` [vocab] for picking the next token, in fp32; `response` has one more token at
        each call. Raises `EngineError` if the grammar cannot be continued."""
        logits = logits.float()
        if self._sampling.penalised:
            logits = penalise(logits, self._sampling, self._prompt_ids, response)
        if self._matcher is not None:
            if response:
                self._matcher.consume_token(response[-1])
            allowed = _mask(self._matcher, len(logits))
            logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        return logits


def _mask(matcher: LLMatcher, vocabulary: int) -> Tensor:
    """Return whether each token [vocabulary] may come next."""
    import numpy
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    # Not llguidance.torch, which compiles a kernel with torch.compile.
    bits = allocate_token_bitmask(1, vocabulary)
    if not matcher.is_error():
        fill_next_token_bitmask(matcher, bits)
    if matcher.is_error():
        raise EngineError(f"the response can no longer satisfy its grammar: {matcher.get_error()}")
    return torch.from_numpy(numpy.unpackbits(bits.view(numpy.uint8), bitorder="little")[:vocabulary].astype(bool))
