"""Logits processing before a token is picked: grammar constraints, then penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from midstream.core.sampling import SamplingParams
from midstream.engines.torch.allowed import next_allowed
from midstream.engines.torch.sampling import penalise

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Steering:
    """Processes the logits of one response."""

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], matcher: LLMatcher | None) -> None:
        self._sampling, self._prompt_ids, self._matcher = sampling, prompt_ids, matcher

    def limited(self, logits: Tensor, sampled: Sequence[int]) -> Tensor:
        """Return `logits` [vocab] in fp32, -inf for tokens that the constraint refuses; `sampled` has one more token at
        each call. Raises `EngineError` if the grammar cannot be continued."""
        logits = logits.float()
        if self._matcher is None:
            return logits
        if sampled:
            self._matcher.consume_token(sampled[-1])
        allowed = next_allowed(self._matcher, len(logits))
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def penalised(self, logits: Tensor, sampled: Sequence[int]) -> Tensor | None:
        """Return `limited` logits [vocab] with penalties, to pick the next token from; None without penalties."""
        return penalise(logits, self._sampling, self._prompt_ids, sampled) if self._sampling.penalised else None
