"""The decoder with a slot cache: a sequence's keys and values stay in its slot, so only new tokens are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from midstream.engines.torch.attention import SlotAttention, SlotCache, TreeAttention, merge_prefixes
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.lora import AdapterChoice, choose_rows
from midstream.engines.torch.slots import Slot, SlotAssignment

PREFILL_BUDGET = 1 << 25
"""Most query-key pairs (rows x queries x keys) materialised in one prefill pass."""

Prompt = tuple[int, ...]
Adapters = Sequence[str | None]
"""The adapter of each sequence by name; empty: the model's first; None: the base model."""


class CachedDecoder:
    """`decoder` with the keys and values of sequences in slots. A slot belongs to one adapter as long as it has
    tokens."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cache = SlotCache(len(decoder.layers), decoder.kv_heads, decoder.head_dim, decoder.dtype, decoder.device)
        self.tokens_prefilled = 0
        """Prompt tokens computed, excluding shared and cached ones."""

    def clear(self) -> None:
        """Free the memory; no slot may be in use."""
        self._cache.clear()

    def begin(
        self, prompts: Sequence[Prompt], places: Sequence[SlotAssignment], adapters: Adapters | None = None
    ) -> Tensor:
        """Return the hidden state [n, hidden] of each prompt's last token; fills the slots with the missing tokens."""
        adapters = adapters or [""] * len(prompts)
        self._reserve([place.slot for place in places], [len(prompt) for prompt in prompts])
        for place in places:
            source = place.source
            if source is not None and source is not place.slot:
                self._cache.copy(source.index, place.slot.index, 0, len(source.tokens))
                place.slot.tokens = list(source.tokens)
        ends: dict[int, Tensor] = {}
        for chunk in _chunks([at for at, place in enumerate(places) if place.source is None], prompts):
            chosen = [adapters[at] for at in chunk]
            found = self._prefill([prompts[at] for at in chunk], [places[at].slot for at in chunk], chosen)
            ends.update(zip(chunk, found, strict=True))
        known = [at for at, place in enumerate(places) if place.source is not None]
        if known:
            chosen = [adapters[at] for at in known]
            found = self._go_on([prompts[at] for at in known], [places[at].slot for at in known], chosen)
            ends.update(zip(known, found, strict=True))
        return torch.stack([ends[at] for at in range(len(places))])

    def extend(
        self, slots: Sequence[Slot], deltas: Sequence[Sequence[int]], adapters: Adapters | None = None
    ) -> Tensor:
        """Return the hidden state [n, hidden] of the last token of each delta, appended to its slot's tokens."""
        decoder = self._decoder
        adapters = adapters or [""] * len(slots)
        lengths = [len(slot.tokens) for slot in slots]
        counts = [len(delta) for delta in deltas]
        self._reserve(slots, [length + count for length, count in zip(lengths, counts, strict=True)])
        attend = SlotAttention(
            self._cache, [slot.index for slot in slots], lengths, counts, decoder.group, decoder.queries
        )
        tokens = torch.tensor([token for delta in deltas for token in delta], device=decoder.device)
        by_token = [name for name, count in zip(adapters, counts, strict=True) for _ in range(count)]
        hidden = decoder(tokens, attend.positions, attend, adapter=choose_rows(by_token, decoder.device))
        for slot, delta in zip(slots, deltas, strict=True):
            slot.tokens.extend(delta)
        return hidden[torch.tensor(counts, device=decoder.device).cumsum(0) - 1]

    def _reserve(self, slots: Sequence[Slot], lengths: Sequence[int]) -> None:
        self._cache.reserve(max(slot.index for slot in slots) + 1, max(lengths))

    def _prefill(self, prompts: Sequence[Prompt], slots: Sequence[Slot], adapters: Adapters) -> Tensor:
        decoder = self._decoder
        tree = merge_prefixes(prompts, decoder.device, adapters)
        attend = TreeAttention(tree, decoder.group, decoder.dtype, keep=True, queries=decoder.queries)
        choice = _by_token(len(tree.tokens), tree.paths, adapters, decoder.device)
        hidden = decoder(tree.tokens, tree.positions, attend, adapter=choice)
        assert attend.kept is not None
        sharing: dict[tuple[int, ...], list[int]] = {}
        for slot, prompt, path in zip(slots, prompts, tree.paths, strict=True):
            sharing.setdefault(tuple(path), []).append(slot.index)
            slot.tokens = list(prompt)
        for path, filled in sharing.items():
            self._cache.fill(filled, attend.kept, path)
        self.tokens_prefilled += tree.size
        return hidden[torch.tensor([path[-1] for path in tree.paths], device=decoder.device)]

    def _go_on(self, prompts: Sequence[Prompt], slots: Sequence[Slot], adapters: Adapters) -> list[Tensor]:
        """Return the hidden state of the last token of each prompt that continues its slot's tokens. Of equal prompts
        (group members that made the same call) one is computed and the others copy it."""
        alike = [(p, len(slot.tokens), name) for p, slot, name in zip(prompts, slots, adapters, strict=True)]
        first: dict[tuple[Prompt, int, str | None], Slot] = {}
        for key, slot in zip(alike, slots, strict=True):
            first.setdefault(key, slot)
        chosen, names = list(first.values()), [name for _, _, name in first]
        deltas = [list(prompt[length:]) for prompt, length, _ in first]
        most = max(1, PREFILL_BUDGET // (max(map(len, deltas)) * self._cache.capacity))
        ends: list[Tensor] = []
        for start in range(0, len(chosen), most):
            part = slice(start, start + most)
            ends += self.extend(chosen[part], deltas[part], names[part])
        hidden = dict(zip(first, ends, strict=True))
        for key, slot in zip(alike, slots, strict=True):
            if slot is not first[key]:
                prompt, length, _ = key
                self._cache.copy(first[key].index, slot.index, length, len(prompt))
                slot.tokens.extend(prompt[length:])
        self.tokens_prefilled += sum(len(delta) for delta in deltas)
        return [hidden[key] for key in alike]


def _by_token(size: int, paths: Sequence[Sequence[int]], adapters: Adapters, device: torch.device) -> AdapterChoice:
    """Return the adapter of each of `size` tokens from those of the sequences that go through it."""
    if len(set(adapters)) == 1:
        return adapters[0]
    by_token: list[str | None] = [None] * size
    for path, name in zip(paths, adapters, strict=True):
        for token in path:
            by_token[token] = name
    return choose_rows(by_token, device)


def _chunks(calls: Sequence[int], prompts: Sequence[Prompt]) -> list[list[int]]:
    """Split a prefill into parts of at most `PREFILL_BUDGET` pairs; group members are neighbours and stay together."""
    chunks: list[list[int]] = []
    longest = 0
    for at in calls:
        longest = max(longest, len(prompts[at]))
        if not chunks or (len(chunks[-1]) + 1) * longest**2 > PREFILL_BUDGET:
            chunks.append([])
            longest = len(prompts[at])
        chunks[-1].append(at)
    return chunks
