"""The torch engine: samples from the decoder being trained, batched over all waiting trajectories.

A prompt shared by several calls is computed once. A trajectory's history stays in a slot of the key/value cache, so its
next call computes only new tokens; its concurrent calls run side by side. With `deterministic`, a batch starts when
every active trajectory waits for the engine, so batches depend on the trajectories and never on timing."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from midstream.core.errors import EngineError, Unsupported
from midstream.core.types import FinishReason
from midstream.engines.base import Capabilities, Completion, Request, room_for
from midstream.engines.chat import ChatTokenizer
from midstream.engines.publication import POLICY, Publication
from midstream.engines.torch.allowed import Grammars
from midstream.engines.torch.cached import CachedDecoder
from midstream.engines.torch.compute import compute
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.loading import load_weights
from midstream.engines.torch.numerics import Asked, numerics_of, settle
from midstream.engines.torch.sampling import sample
from midstream.engines.torch.slots import SlotAssignment, Slots
from midstream.engines.torch.steering import Steering


@dataclass(slots=True, eq=False)
class _Row:
    """A running call."""

    request: Request
    future: asyncio.Future[Completion]
    seed: int
    limit: int
    since: float
    order: int
    adapter: str
    steering: Steering | None
    place: SlotAssignment | None = None
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    delivered: int = 0
    """Number of tokens passed to `on_tokens`."""
    finish: FinishReason | None = None
    failure: Exception | None = None

    @property
    def over(self) -> bool:
        return self.finish is not None or self.failure is not None or self.future.cancelled()


class TorchEngine:
    """Samples from `decoder`. `adapter` names the weights for requests that name none, see `Publication`; requests with
    different adapters share their batches. `frozen` makes an engine for the base model without an adapter. Engines that
    serve the same trajectories are created `beside` the first. With `numerics`, they are settled again for the first
    publication, which may add adapters; `auto` then keeps those of the run that published it."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: ChatTokenizer,
        *,
        name: str = "policy",
        slots: int = 64,
        deterministic: bool = False,
        adapter: str | None = POLICY,
        beside: TorchEngine | None = None,
        numerics: Asked | None = None,
    ) -> None:
        self.name, self.decoder, self.tokenizer = name, decoder, tokenizer
        self.deterministic, self.slots, self.adapter = deterministic, slots, adapter or ""
        self.tokens_sampled = 0
        self.capabilities = Capabilities() if adapter else Capabilities(adapters=False, full=False)
        self._numerics: Asked | None = numerics
        self._versions: dict[str, int] = {}
        """Versions of the adapters that were loaded; those of others are the decoder's."""
        self._cached = CachedDecoder(decoder)
        self._slots = Slots(slots)
        self._cached_version = decoder.version
        self._vocabulary = decoder.lm_head.weight.shape[0]
        # Shared with the learner, which scores recorded responses of this model.
        self._grammars = decoder.grammars = decoder.grammars or Grammars(tokenizer, self._vocabulary)
        # Deterministic engines that serve the same trajectories wait for them jointly, in order of creation.
        self._together: list[TorchEngine] = beside._together if beside else []
        self._together.append(self)
        self._live: set[str] = beside._live if beside else set()
        self._waiting: list[_Row] = []
        self._active: list[_Row] = []
        self._pauses = 0
        self._arrivals = 0
        self._runner: asyncio.Task[None] | None = None
        self._idle: asyncio.Event = asyncio.Event()

    @property
    def policy_version(self) -> int:
        return self.decoder.version if self.adapter else 0

    @property
    def context_length(self) -> int:
        return self.decoder.context_length

    @property
    def tokens_prefilled(self) -> int:
        """Prompt tokens computed, excluding shared and cached ones."""
        return self._cached.tokens_prefilled

    def join(self, session: str) -> None:
        self._live.add(session)

    def leave(self, session: str) -> None:
        self._live.discard(session)
        self._slots.leave(session)
        self._tidy()
        self._kick()

    async def generate(self, request: Request) -> Completion:
        limit = room_for(request, self.context_length)
        if not request.prompt_ids:
            raise EngineError("an empty prompt: there is nothing to continue")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocabulary:
            raise EngineError(f"the prompt holds token ids outside the model's vocabulary of {self._vocabulary}")
        adapter = self._adapter_of(request)
        since = time.perf_counter()
        self._arrivals += 1
        order = self._arrivals
        steering = await self._steering(request)
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        row = _Row(request, future, seed, limit, since, order, adapter, steering)
        self._waiting.append(row)
        self._kick()
        try:
            return await future
        finally:
            # A call cancelled before it was admitted is still queued. One cancelled later ends with its step.
            if row.place is None and row in self._waiting:
                self._waiting.remove(row)

    def _adapter_of(self, request: Request) -> str:
        """Return the adapter of a request, empty for the frozen base model. Raises `EngineError` for an unknown one."""
        if not self.adapter:
            return ""
        name, known = request.adapter or self.adapter, self.decoder.adapter_names or (self.adapter,)
        if name not in known:
            raise EngineError(f"{self.name} has no adapter '{name}'; it has: {', '.join(known)}")
        return name

    async def _steering(self, request: Request) -> Steering | None:
        if request.constraint is None:
            return Steering(request.sampling, request.prompt_ids, None) if request.sampling.penalised else None
        matcher = await asyncio.to_thread(self._grammars.matcher, request.constraint)
        return Steering(request.sampling, request.prompt_ids, matcher)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Pause inside the context: running calls finish first and new ones wait, so weights may change. Nests: calls
        resume when the outermost context ends."""
        self._pauses += 1
        try:
            while self._active:
                self._idle.clear()
                await self._idle.wait()
            yield
        finally:
            self._pauses -= 1
            self._kick()

    async def load_weights(self, publication: Publication) -> None:
        if not self.adapter:
            raise Unsupported(f"{self.name}: the frozen base model takes no weights")
        async with self.exclusive():
            await compute(load_weights, self.decoder, publication.folder, publication.adapter)
            # What is cached was computed with the weights before, which may have had the same version.
            self._slots.drop_idle()
            if self._numerics is not None:
                recorded = numerics_of(publication.folder) if self._numerics == "auto" else None
                await compute(settle, self.decoder, self._numerics, recorded, required=self._numerics != "auto")
                self._numerics = None
            self.decoder.version, self.adapter = publication.version, publication.adapter
            self._versions[publication.adapter] = publication.version

    def frozen(self) -> TorchEngine:
        if not self.decoder.adapter_names:
            raise Unsupported(f"{self.name}: all weights of this model are trained, and no frozen copy is left")
        return TorchEngine(
            self.decoder,
            self.tokenizer,
            name="frozen",
            slots=self.slots,
            deterministic=self.deterministic,
            adapter=None,
            beside=self,
        )

    def _kick(self) -> None:
        for engine in self._together if self.deterministic else (self,):
            if (engine._runner is None or engine._runner.done()) and engine._admissible():
                engine._runner = asyncio.get_running_loop().create_task(engine._run())

    def _admissible(self) -> bool:
        if self._pauses or not self._waiting:
            return False
        if not self.deterministic:
            return True
        waiting = {row.request.session for engine in self._together for row in engine._waiting}
        return not any(engine._active for engine in self._together) and self._live <= waiting

    async def _run(self) -> None:
        while True:
            admitted = self._admit() if self._admissible() else []
            if not admitted and not self._active:
                break
            self._active += admitted
            try:
                await compute(self._advance, admitted)
            except Exception as error:
                self._fail(error)
                continue
            for row in self._active:
                if row.request.on_tokens is not None:
                    _tell(row)
                if row.over:
                    self._end(row)
            self._active = [row for row in self._active if row.place is not None]
            if not self._active:
                self._idle.set()
                # Delivered results resume their trajectories, which may call again: let them before the next batch.
                await asyncio.sleep(0)
        self._idle.set()
        self._kick()

    def _fail(self, error: Exception) -> None:
        rows, self._active = self._active, []
        for row in rows:
            row.failure = EngineError(f"the torch engine failed: {type(error).__name__}: {error}")
            self._end(row)

    def _end(self, row: _Row) -> None:
        """Release the slot and deliver the result."""
        assert row.place is not None
        self._slots.done(row.place.slot, keep=row.failure is None and not row.future.cancelled())
        self._tidy()
        row.place = None
        if row.future.done():
            return
        if row.failure is not None:
            row.future.set_exception(row.failure)
            return
        row.future.set_result(
            Completion(
                ids=tuple(row.ids),
                log_probs=tuple(row.log_probs),
                text=self.tokenizer.text_of(row.ids),
                finish_reason=row.finish or FinishReason.STOP,
                policy_version=self._versions.get(row.adapter, self.policy_version),
                adapter=row.adapter,
                latency_s=time.perf_counter() - row.since,
                top_log_probs=tuple(row.top),
                over_allowed=row.request.constraint is not None,
            )
        )

    def _tidy(self) -> None:
        if not self._slots:
            self._cached.clear()

    def _admit(self) -> list[_Row]:
        """Admit waiting calls for which a slot is free or can be freed, in a fixed order."""
        if self._cached_version != self.decoder.version:
            self._slots.drop_idle()
            self._cached_version = self.decoder.version
        order = (lambda row: (row.request.session, row.order)) if self.deterministic else (lambda row: (row.order,))
        waiting = sorted((row for row in self._waiting if not row.future.cancelled()), key=order)
        for row in waiting:
            if not row.request.adapter:
                row.adapter = self.adapter  # another may have been loaded while the call waited
        places = self._slots.assign([((row.request.session, row.adapter), row.request.prompt_ids) for row in waiting])
        for row, place in zip(waiting, places, strict=True):
            row.place = place
        self._waiting = [row for row in waiting if row.place is None]
        return [row for row in waiting if row.place is not None]

    @torch.no_grad()
    def _advance(self, admitted: list[_Row]) -> None:
        """Sample, in the compute thread: the first token of `admitted` calls, else the next token of every active
        one."""
        rows = admitted or self._active
        places = [row.place for row in rows if row.place is not None]
        # Weights without an adapter have a name too.
        names = self.decoder.adapter_names
        adapters = [row.adapter if row.adapter in names else None for row in rows]
        if admitted:
            hidden = self._cached.begin([row.request.prompt_ids for row in rows], places, adapters)
        else:
            hidden = self._cached.extend([place.slot for place in places], [[row.ids[-1]] for row in rows], adapters)
        logits = self.decoder.logits(hidden)
        picked, log_probs, every = sample(
            logits,
            [row.request.sampling for row in rows],
            [row.seed for row in rows],
            [len(row.ids) for row in rows],
            *self._steer(rows, logits),
        )
        for at, (row, token, log_prob) in enumerate(zip(rows, picked.tolist(), log_probs.tolist(), strict=True)):
            if row.failure is not None:
                continue
            row.ids.append(token)
            row.log_probs.append(log_prob)
            if row.request.top_log_probs:
                row.top.append(_likeliest(every[at], row.request.top_log_probs))
            row.finish = self._finished(row)
        self.tokens_sampled += len(rows)

    def _steer(self, rows: list[_Row], logits: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return the limited and the penalised logits of the rows that have any."""
        limited: dict[int, Tensor] = {}
        penalised: dict[int, Tensor] = {}
        for at, row in enumerate(rows):
            if row.steering is None:
                continue
            try:
                own = row.steering.limited(logits[at], row.ids)
            except EngineError as error:
                row.failure = error
                continue
            if row.request.constraint is not None:
                limited[at] = own
            changed = row.steering.penalised(own, row.ids)
            if changed is not None:
                penalised[at] = changed
        return limited, penalised

    def _finished(self, row: _Row) -> FinishReason | None:
        if row.ids[-1] in self.tokenizer.end_ids:
            return FinishReason.STOP
        stop = row.request.sampling.stop
        if stop:
            text = self.tokenizer.text_of(row.ids)
            if any(string in text for string in stop):
                return FinishReason.STOP
        return FinishReason.LENGTH if len(row.ids) >= row.limit else None


def _tell(row: _Row) -> None:
    """Deliver the tokens sampled since the last delivery. An error in the callback fails its own call."""
    ids, log_probs = row.ids[row.delivered :], row.log_probs[row.delivered :]
    if not ids or row.future.cancelled() or row.request.on_tokens is None:
        return
    row.delivered = len(row.ids)
    try:
        row.request.on_tokens(ids, log_probs)
    except Exception as error:
        row.failure = error


def _likeliest(log_probs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    values, ids = log_probs.topk(min(count, len(log_probs)))
    # Tokens that a constraint refuses have no probability.
    return tuple(one for one in zip(ids.tolist(), values.tolist(), strict=True) if one[1] > -math.inf)
