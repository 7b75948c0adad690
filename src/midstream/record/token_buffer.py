"""`TokenBuffer`: keeps the tokens that an engine has sampled so far, in case the call is cancelled."""

from __future__ import annotations

import time
from collections.abc import Sequence

from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Engine, OnTokens
from midstream.engines.chat import ChatTokenizer


class TokenBuffer:
    """Forwards tokens as an engine samples them, and buffers them in case the call is cancelled. `adapter` names the
    weights that were requested; empty leaves them to the engine."""

    def __init__(self, on_tokens: OnTokens | None, engine: Engine, adapter: str = "") -> None:
        self._on_tokens, self._policy_version = on_tokens, engine.policy_version
        # Only engines whose weights can be replaced have one.
        self._adapter: str = adapter or getattr(engine, "adapter", "")
        self._began = time.perf_counter()
        self._ids: list[int] = []
        self._log_probs: list[float] = []

    def __call__(self, ids: Sequence[int], log_probs: Sequence[float]) -> None:
        self._ids += ids
        self._log_probs += log_probs
        if self._on_tokens is not None:
            self._on_tokens(ids, log_probs)

    def completion(self, tokenizer: ChatTokenizer | None) -> Completion | None:
        """Return the tokens sampled so far; None if there are none."""
        if not self._ids or tokenizer is None:
            return None
        return Completion(
            ids=tuple(self._ids),
            log_probs=tuple(self._log_probs),
            text=tokenizer.text_of(self._ids),
            finish_reason=FinishReason.INTERRUPTED,
            policy_version=self._policy_version,
            adapter=self._adapter,
            latency_s=time.perf_counter() - self._began,
        )
