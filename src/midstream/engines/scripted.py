"""Returns canned replies: for tests, benchmarks, and a gateway without a model.

Replies are not sampled: of the sampling settings only `max_tokens` and `stop` apply, and constraints are not enforced.
Log-probabilities are synthetic and deterministic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache

from midstream.core import clock
from midstream.core.errors import EngineError, Unsupported
from midstream.core.seeds import unit_interval
from midstream.core.types import FinishReason
from midstream.engines.base import Capabilities, Completion, Engine, Request, room_for
from midstream.engines.chat import ChatTokenizer
from midstream.engines.pause import Pause
from midstream.engines.publication import Publication

Reply = str | Exception
"""Answer to a call: text, or an error to raise."""


class ScriptedEngine:
    """Answers with `replies`: one for every call, a list consumed in order by each session, or a function of the
    request.

    A call takes `latency_s` plus the time for its tokens at `tokens_per_s` (None: no time). `policy_version` can be
    set; a call reports the version at its start."""

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
        self.adapter = ""
        self.latency_s, self.tokens_per_s = latency_s, tokens_per_s
        self.tokens_sampled = self.tokens_prefilled = 0
        self.capabilities = Capabilities()
        self._replies = replies
        self._answered: dict[str, int] = {}
        self._end = tokenizer.closing_id()
        self._tokens = lru_cache(1024)(self._tokens_of)
        self._pause = Pause()

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None:
        self._answered.pop(session, None)

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Pause inside the context: no call is running, and new calls wait."""
        return self._pause.exclusive()

    async def load_weights(self, publication: Publication) -> None:
        """Set `policy_version` and `adapter`; replies stay the same."""
        async with self.exclusive():
            self.policy_version, self.adapter = publication.version, publication.adapter

    def frozen(self) -> Engine:
        raise Unsupported(f"{self.name} has no model: its replies are canned")

    async def generate(self, request: Request) -> Completion:
        began = time.perf_counter()
        limit = room_for(request, self.context_length)
        async with self._pause.call():
            version, adapter = self.policy_version, request.adapter or self.adapter
            reply = self._next(request)
            if self.latency_s:
                await clock.sleep(self.latency_s)
            if isinstance(reply, Exception):
                raise reply
            ids, log_probs, text, reason = self._cut(reply, request.sampling.stop, limit)
            await self._pace(request, ids, log_probs)
            self.tokens_sampled += len(ids)
            self.tokens_prefilled += len(request.prompt_ids)
            return Completion(
                ids=ids,
                log_probs=log_probs,
                text=text,
                finish_reason=reason,
                policy_version=version,
                adapter=adapter,
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
        """Return the ids of a reply, their log-probabilities, and their text."""
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
            # Scheduled against the clock, so that late wake-ups do not accumulate.
            due = began + (place + 1) / self.tokens_per_s if self.tokens_per_s else began
            await clock.sleep(max(0.0, due - clock.monotonic()))
            request.on_tokens(ids[place : place + 1], log_probs[place : place + 1])

    def _top(
        self, count: int, ids: Sequence[int], log_probs: Sequence[float]
    ) -> tuple[tuple[tuple[int, float], ...], ...]:
        """Return the token itself as the most likely, followed by its neighbours in the vocabulary."""
        if not count:
            return ()
        size = len(self.tokenizer)
        return tuple(
            tuple(((token + place) % size, log_prob - place) for place in range(min(count, size)))
            for token, log_prob in zip(ids, log_probs, strict=True)
        )
