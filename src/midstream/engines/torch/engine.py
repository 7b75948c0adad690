"""The torch engine: samples from the decoder the learner trains, batched over every trajectory that waits.

A prompt shared by several calls is computed once. What a trajectory has already been through stays in its slot of the
key/value cache, so its next call computes only what is new. With `deterministic`, a batch starts when every live
trajectory waits for the engine, so what is computed together depends on the trajectories and never on timing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from midstream.core.errors import EngineError, PromptTooLong
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.torch.attention import SlotAttention, SlotCache, TreeAttention, merge_prefixes
from midstream.engines.torch.compute import compute
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.sampling import sample

PREFILL_BUDGET = 1 << 25
"""Most query-key pairs (rows x queries x keys) one pass over prompts lays out at a time."""


@dataclass(slots=True)
class _Row:
    request: Request
    future: asyncio.Future[Completion]
    seed: int
    limit: int
    since: float
    order: int
    slot: int = -1
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


class TorchEngine:
    """Samples from `decoder`. `adapter=False` makes the frozen base model of the same weights an engine of its own; it
    goes `beside` the engine whose trajectories it serves too."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: ChatTokenizer,
        *,
        name: str = "policy",
        slots: int = 64,
        deterministic: bool = False,
        adapter: bool = True,
        beside: TorchEngine | None = None,
    ) -> None:
        self.name, self.decoder, self.tokenizer = name, decoder, tokenizer
        self.deterministic, self.slots, self._adapter = deterministic, slots, adapter
        self.tokens_sampled = 0
        self.tokens_prefilled = 0
        self._cache = SlotCache(len(decoder.layers), decoder.kv_heads, decoder.head_dim, decoder.dtype, decoder.device)
        self._held: dict[str, int] = {}
        self._tokens: list[list[int]] = [[] for _ in range(slots)]
        self._free = list(range(slots - 1, -1, -1))
        self._cached_version = decoder.version
        # Deterministic engines that serve the same trajectories wait for them together, the first one first.
        self._together: list[TorchEngine] = beside._together if beside else []
        self._together.append(self)
        self._live: set[str] = beside._live if beside else set()
        self._waiting: list[_Row] = []
        self._active: list[_Row] = []
        self._paused = False
        self._arrivals = 0
        self._runner: asyncio.Task[None] | None = None
        self._idle: asyncio.Event = asyncio.Event()

    @property
    def policy_version(self) -> int:
        return self.decoder.version if self._adapter else 0

    @property
    def context_length(self) -> int:
        return self.decoder.context_length

    def join(self, session: str) -> None:
        self._live.add(session)

    def leave(self, session: str) -> None:
        self._live.discard(session)
        # A call that was given up writes to its slot until the step under way ends; `_run` drops it then.
        if not any(row.request.session == session for row in self._active):
            self._drop(session)
        self._kick()

    async def generate(self, request: Request) -> Completion:
        room = self.context_length - len(request.prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"a prompt of {len(request.prompt_ids)} tokens leaves no room in a context of {self.context_length}"
            )
        if not request.prompt_ids:
            raise EngineError("an empty prompt: there is nothing to continue")
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        limit = min(request.sampling.max_tokens, room)
        self._waiting.append(_Row(request, future, seed, limit, time.perf_counter(), self._arrivals))
        self._kick()
        return await future

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Weights may change inside: calls under way finish first, new ones wait, so none sees two versions."""
        self._paused = True
        try:
            while self._active:
                self._idle.clear()
                await self._idle.wait()
            yield
        finally:
            self._paused = False
            self._kick()

    def _kick(self) -> None:
        for engine in self._together if self.deterministic else (self,):
            if (engine._runner is None or engine._runner.done()) and engine._admissible():
                engine._runner = asyncio.get_running_loop().create_task(engine._run())

    def _admissible(self) -> bool:
        if self._paused or not self._waiting:
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
                if row.future.cancelled():
                    self._drop(row.request.session)
                elif row.finish is not None:
                    self._deliver(row)
            self._active = [row for row in self._active if row.finish is None and not row.future.cancelled()]
            if not self._active:
                self._idle.set()
                # Deliveries wake their trajectories, which may call again: let them before looking who waits.
                await asyncio.sleep(0)
        self._idle.set()
        self._kick()

    def _fail(self, error: Exception) -> None:
        rows, self._active = self._active, []
        for row in rows:
            self._drop(row.request.session)
            if not row.future.done():
                row.future.set_exception(EngineError(f"the torch engine failed: {type(error).__name__}: {error}"))

    def _deliver(self, row: _Row) -> None:
        if row.future.done():
            return
        row.future.set_result(
            Completion(
                ids=tuple(row.ids),
                log_probs=tuple(row.log_probs),
                text=self.tokenizer.text_of(row.ids),
                finish_reason=row.finish or FinishReason.STOP,
                policy_version=self.policy_version,
                latency_s=time.perf_counter() - row.since,
            )
        )

    def _admit(self) -> list[_Row]:
        """Take waiting calls for which a slot is free or can be freed, in a fixed order."""
        if self._cached_version != self.decoder.version:
            for session in list(self._held):
                self._drop(session)
            self._cached_version = self.decoder.version
        self._waiting = [row for row in self._waiting if not row.future.cancelled()]
        busy = {row.request.session for row in self._active}
        order = (lambda row: (row.request.session, row.order)) if self.deterministic else (lambda row: (row.order,))
        admitted: list[_Row] = []
        for row in sorted(self._waiting, key=order):
            session = row.request.session
            if session in busy:
                continue
            slot = self._held.get(session)
            if slot is None:
                if not self._free:
                    idle = [name for name in self._held if name not in busy and not self._awaited(name)]
                    if not idle:
                        continue  # those that hold a slot go on; one of them ends or idles before long
                    self._drop(idle[0])
                slot = self._held[session] = self._free.pop()
            row.slot = slot
            busy.add(session)
            admitted.append(row)
        taken = {id(row) for row in admitted}
        self._waiting = [row for row in self._waiting if id(row) not in taken]
        return admitted

    def _awaited(self, session: str) -> bool:
        return any(row.request.session == session for row in self._waiting)

    def _drop(self, session: str) -> None:
        slot = self._held.pop(session, None)
        if slot is not None:
            self._release(slot)

    def _release(self, slot: int) -> None:
        self._tokens[slot] = []
        self._free.append(slot)
        self._free.sort(reverse=True)
        if not self._held:
            self._cache.clear()

    @torch.no_grad()
    def _advance(self, admitted: list[_Row]) -> None:
        """In the compute thread: the first token of `admitted` calls, or else the next token of every active one."""
        if admitted:
            hidden = self._prefill(admitted)
            rows = admitted
        else:
            rows = self._active
            hidden = self._extend(rows, [[row.ids[-1]] for row in rows])
        logits = self.decoder.logits(hidden)
        picked, log_probs = sample(
            logits, [row.request.sampling for row in rows], [row.seed for row in rows], [len(row.ids) for row in rows]
        )
        for row, token, log_prob in zip(rows, picked.tolist(), log_probs.tolist(), strict=True):
            row.ids.append(token)
            row.log_probs.append(log_prob)
            row.finish = self._finished(row)
        self.tokens_sampled += len(rows)

    def _finished(self, row: _Row) -> FinishReason | None:
        if row.ids[-1] in self.tokenizer.end_ids:
            return FinishReason.STOP
        stop = row.request.sampling.stop
        if stop:
            text = self.tokenizer.text_of(row.ids)
            if any(string in text for string in stop):
                return FinishReason.STOP
        return FinishReason.LENGTH if len(row.ids) >= row.limit else None

    def _prefill(self, rows: list[_Row]) -> Tensor:
        """Hidden state [rows, hidden] of each prompt's last token; slots are filled with what was not there yet."""
        self._reserve(rows, [len(row.request.prompt_ids) for row in rows])
        last: dict[int, Tensor] = {}
        fresh: list[_Row] = []
        known: list[_Row] = []
        for row in rows:
            held = self._tokens[row.slot]
            prompt = list(row.request.prompt_ids)
            (known if held and len(held) < len(prompt) and prompt[: len(held)] == held else fresh).append(row)
        for chunk in _chunks(fresh):
            for row, hidden in zip(chunk, self._prefill_tree(chunk), strict=True):
                last[row.order] = hidden
        if known:
            for row, hidden in zip(known, self._continue(known), strict=True):
                last[row.order] = hidden
        return torch.stack([last[row.order] for row in rows])

    def _reserve(self, rows: list[_Row], lengths: list[int]) -> None:
        self._cache.reserve(max(row.slot for row in rows) + 1, max(lengths))

    def _prefill_tree(self, rows: list[_Row]) -> Tensor:
        decoder = self.decoder
        prompts = [row.request.prompt_ids for row in rows]
        tree = merge_prefixes(prompts, decoder.device)
        attend = TreeAttention(tree, decoder.heads // decoder.kv_heads, decoder.dtype, keep=True)
        hidden = decoder(tree.tokens, tree.positions, attend, adapter=self._adapter)
        assert attend.kept is not None
        sharing: dict[tuple[int, ...], list[int]] = {}
        for row, path in zip(rows, tree.paths, strict=True):
            sharing.setdefault(tuple(path), []).append(row.slot)
            self._tokens[row.slot] = list(row.request.prompt_ids)
        for path, slots in sharing.items():
            self._cache.fill(slots, attend.kept, path)
        self.tokens_prefilled += tree.size
        return hidden[torch.tensor([path[-1] for path in tree.paths], device=decoder.device)]

    def _continue(self, rows: list[_Row]) -> list[Tensor]:
        """Hidden state of the last token of each prompt that goes on from what its slot holds. Of prompts that are the
        same, as those of a group's members who made the same call are, one is computed and the others copy it."""
        held = [len(self._tokens[row.slot]) for row in rows]
        alike = [(row.request.prompt_ids, length) for row, length in zip(rows, held, strict=True)]
        first: dict[tuple[tuple[int, ...], int], int] = {}
        for index, key in enumerate(alike):
            first.setdefault(key, index)
        chosen = [rows[index] for index in first.values()]
        deltas = [list(prompt[length:]) for prompt, length in first]
        self._reserve(chosen, [len(prompt) for prompt, _ in first])
        most = max(1, PREFILL_BUDGET // (max(map(len, deltas)) * self._cache.capacity))
        ends: list[Tensor] = []
        for start in range(0, len(chosen), most):
            ends += self._extend(chosen[start : start + most], deltas[start : start + most])
        hidden = dict(zip(first, ends, strict=True))
        for index, (row, key) in enumerate(zip(rows, alike, strict=True)):
            if index != first[key]:
                prompt, length = key
                self._cache.copy(rows[first[key]].slot, row.slot, length, len(prompt))
                self._tokens[row.slot].extend(prompt[length:])
        self.tokens_prefilled += sum(len(delta) for delta in deltas)
        return [hidden[key] for key in alike]

    def _extend(self, rows: list[_Row], deltas: list[list[int]]) -> Tensor:
        decoder = self.decoder
        lengths = [len(self._tokens[row.slot]) for row in rows]
        counts = [len(delta) for delta in deltas]
        self._reserve(rows, [length + count for length, count in zip(lengths, counts, strict=True)])
        attend = SlotAttention(
            self._cache, [row.slot for row in rows], lengths, counts, decoder.heads // decoder.kv_heads
        )
        tokens = torch.tensor([token for delta in deltas for token in delta], device=decoder.device)
        hidden = decoder(tokens, attend.positions, attend, adapter=self._adapter)
        for row, delta in zip(rows, deltas, strict=True):
            self._tokens[row.slot].extend(delta)
        return hidden[torch.tensor(counts, device=decoder.device).cumsum(0) - 1]


def _chunks(rows: list[_Row]) -> list[list[_Row]]:
    """Split a prefill so that no part lays out more than `PREFILL_BUDGET` pairs; group mates are neighbours and stay
    together."""
    chunks: list[list[_Row]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row.request.prompt_ids))
        if not chunks or (len(chunks[-1]) + 1) * longest**2 > PREFILL_BUDGET:
            chunks.append([])
            longest = len(row.request.prompt_ids)
        chunks[-1].append(row)
    return chunks
