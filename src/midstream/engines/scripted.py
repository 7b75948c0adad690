"""An engine that says what it was told to: for tests, for benchmarks, and for a gateway without a model.

What it says is written, not sampled, so of the sampling settings only `max_tokens` and `stop` have an effect, and a
constraint holds as far as the script keeps to it. Log-probabilities are made up, and the same each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache

from midstream.core import clock
from midstream.core.errors import EngineError
from midstream.core.seeds import unit_interval
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Request, room_for
from midstream.engines.chat import ChatTokenizer
from midstream.engines.pause import Pause

Reply = str | Exception
"""What to answer a call with: text, or an error to raise."""


class ScriptedEngine:
    """Answers with `replies`: one for every call, a list to go through in each session, or a function of the request.

    A call takes `latency_s`, and then a second for each `tokens_per_s` tokens (None: no time). `policy_version` may be
    set; a call reports the one it began with."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        replies: Reply | Sequence[Reply] | Callable[[Request], Reply],
        latency_s: float = 0.0,
        tokens_per_s: float | None = None,
        *,
        context_length: int = 1 << 20,
        policy_version: int = 0,
        name: str = "scripted",
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.context_length, self.policy_version = context_length, policy_version
        self.latency_s, self.tokens_per_s = latency_s, tokens_per_s
        self._replies = replies
        self._answered: dict[str, int] = {}
        self._end = tokenizer.closing_id()
        self._tokens = lru_cache(1024)(self._tokens_of)
        self._pause = Pause()

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None:
        self._answered.pop(session, None)

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Inside, no call is under way, and new ones wait."""
        return self._pause.exclusive()

    async def generate(self, request: Request) -> Completion:
        began = time.perf_counter()
        limit = room_for(request, self.context_length)
        async with self._pause.call():
            version = self.policy_version
            reply = self._next(request)
            if self.latency_s:
                await clock.sleep(self.latency_s)
            if isinstance(reply, Exception):
                raise reply
            ids, log_probs, text, reason = self._cut(reply, request.sampling.stop, limit)
            await self._pace(request, ids, log_probs)
            return Completion(
                ids=ids,
                log_probs=log_probs,
                text=text,
                finish_reason=reason,
                policy_version=version,
                latency_s=time.perf_counter() - began,
                top_log_probs=self._top(request.top_log_probs, ids, log_probs),
            )

    def _next(self, request: Request) -> Reply:
        if isinstance(self._replies, str | Exception):
            return self._replies
        if callable(self._replies):
            return self._replies(request)
        place = self._answered.get(request.session, 0)
        self._answered[request.session] = place + 1
        if place >= len(self._replies):
            raise EngineError(
                f"the script has {len(self._replies)} replies, and session '{request.session}' asks for one more"
            )
        return self._replies[place]

    def _tokens_of(self, text: str) -> tuple[tuple[int, ...], tuple[float, ...], str]:
        """The ids of a reply, its log-probabilities, and what the ids read as."""
        ids = (*self.tokenizer.encode(text), self._end)
        log_probs = tuple(-2 * unit_interval("scripted", place, token) for place, token in enumerate(ids))
        return ids, log_probs, self.tokenizer.text_of(ids)

    def _cut(
        self, reply: str, stop: Sequence[str], limit: int
    ) -> tuple[tuple[int, ...], tuple[float, ...], str, FinishReason]:
        ids, log_probs, text = self._tokens(reply)
        if len(ids) <= limit and not any(string in reply for string in stop):
            return ids, log_probs, text, FinishReason.STOP
        length, reason = (len(ids), FinishReason.STOP) if len(ids) <= limit else (limit, FinishReason.LENGTH)
        if any(string in reply for string in stop):
            for end in range(1, length + 1):
                if any(string in self.tokenizer.text_of(ids[:end]) for string in stop):
                    length, reason = end, FinishReason.STOP
                    break
        return ids[:length], log_probs[:length], self.tokenizer.text_of(ids[:length]), reason

    async def _pace(self, request: Request, ids: Sequence[int], log_probs: Sequence[float]) -> None:
        if request.on_tokens is None:
            if self.tokens_per_s:
                await clock.sleep(len(ids) / self.tokens_per_s)
            return
        began = clock.monotonic()
        for place in range(len(ids)):
            # Against the clock, so that waking up late does not add up.
            due = began + (place + 1) / self.tokens_per_s if self.tokens_per_s else began
            await clock.sleep(max(0.0, due - clock.monotonic()))
            request.on_tokens(ids[place : place + 1], log_probs[place : place + 1])

    def _top(
        self, count: int, ids: Sequence[int], log_probs: Sequence[float]
    ) -> tuple[tuple[tuple[int, float], ...], ...]:
        """The token itself as the likeliest, and its neighbours in the vocabulary after it."""
        if not count:
            return ()
        size = len(self.tokenizer)
        return tuple(
            tuple(((token + place) % size, log_prob - place) for place in range(min(count, size)))
            for token, log_prob in zip(ids, log_probs, strict=True)
        )
