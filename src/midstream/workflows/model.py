"""The small protocol by which operators reach a model: messages in; text, token counts and cost out.

Any engine serves through `EngineModel`; `ScriptedModel` returns canned replies.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from midstream.core.errors import EngineError
from midstream.core.prices import PRICES, Price, price_of
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.engines.base import Engine, Request
from midstream.engines.chat import ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """One reply. Token counts and cost are None where nobody knows them."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    finish_reason: str = "stop"
    latency_s: float = 0.0
    cached: bool = False


class Model(Protocol):
    """A model that operators ask. `name` identifies it in caches and price tables."""

    @property
    def name(self) -> str: ...

    async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """Answer messages. Raises `EngineError` when the model does not answer."""
        ...


class EngineModel:
    """An engine as a model. Engines that take token ids need the `tokenizer` that renders their prompts."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer | None = None,
        name: str | None = None,
        prices: Mapping[str, Price] = PRICES,
    ) -> None:
        self.name = name or engine.name
        self._engine, self._tokenizer = engine, tokenizer
        self._price = price_of(self.name, prices)
        self._sessions = itertools.count(1)

    async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        session = f"workflow-{id(self):x}-{next(self._sessions)}"
        prompt_ids = () if self._tokenizer is None else self._tokenizer.render(messages)
        request = Request(
            prompt_ids=prompt_ids, sampling=sampling, session=session, role="executor", messages=tuple(messages)
        )
        self._engine.join(session)
        try:
            completion = await self._engine.generate(request)
        finally:
            self._engine.leave(session)
        counted = completion.usage
        if counted is None and completion.ids:
            counted = (len(completion.prompt_ids or prompt_ids), len(completion.ids))
        text = completion.text
        if self._tokenizer is not None and completion.ids:
            text = self._tokenizer.text_of(completion.ids)
        return ModelReply(
            text=text,
            prompt_tokens=None if counted is None else counted[0],
            completion_tokens=None if counted is None else counted[1],
            cost_usd=None if counted is None or self._price is None else self._price.cost(*counted),
            finish_reason=completion.finish_reason,
            latency_s=completion.latency_s,
        )


Script = str | Exception | Sequence[str | Exception] | Callable[[Sequence[Message], SamplingParams], str | Exception]
"""Replies: one for all calls, a list in order, or a function of messages and sampling."""


class ScriptedModel:
    """Returns canned replies. Counts a token for each word."""

    def __init__(self, replies: Script, name: str = "scripted", price: Price | None = None) -> None:
        self.name, self._replies, self._price = name, replies, price
        self.asked: list[tuple[Sequence[Message], SamplingParams]] = []
        """Every call, in order."""

    async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        began, place = time.perf_counter(), len(self.asked)
        self.asked.append((messages, sampling))
        if isinstance(self._replies, str | Exception):
            reply = self._replies
        elif callable(self._replies):
            reply = self._replies(messages, sampling)
        elif place < len(self._replies):
            reply = self._replies[place]
        else:
            raise EngineError(f"the script has {len(self._replies)} replies, and one more is asked for")
        if isinstance(reply, Exception):
            raise reply
        counts = sum(len(str(one["content"]).split()) for one in messages), len(reply.split())
        return ModelReply(
            text=reply,
            prompt_tokens=counts[0],
            completion_tokens=counts[1],
            cost_usd=None if self._price is None else self._price.cost(*counts),
            latency_s=time.perf_counter() - began,
        )
