"""Measures whether a decoder's results for a token depend on the batch size, and the cost of making them independent.

A sample, not a proof: untested row counts may behave differently. The mismatch metrics of a run reveal what it
misses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from midstream.engines.torch import products
from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.cached import CachedDecoder
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.layers import Layer, Projection
from midstream.engines.torch.lora import Adapter
from midstream.engines.torch.products import Rows
from midstream.engines.torch.slots import Slot, SlotAssignment

COUNTS = (1, 3, 7, 16, 32, 33, 64, 100, 128, 200, 256, 320, 640, 1024)
"""Row counts tested, around those at which kernels were observed to change."""
HEAD_COUNTS = tuple(count for count in COUNTS if count <= 256)
"""Row counts for the vocabulary product, which sampling and learning compute with few rows at a time."""
REFERENCE = 512
"""Row count of the reference result."""
FEW_COUNTS = (1, 2, 3, 5)
"""Row counts at which the narrow products of adapters and attention are tested with many rows. Kernels that add in
another order differ in few results once these are rounded to bfloat16, in 1 of 10 000 to 1 000 000: the rows of
`COUNTS` may not show it."""
SCANNED = 4096
"""Rows of such a test for an adapter."""
SCANNED_QUERIES, KEYS = 16384, 64
"""Queries of such a test for attention, and the keys they attend to."""
LENGTHS = (51, 70, 97, 97, 130, 290)
"""Token counts of the sequences in a test pass."""
SHARED = 40
"""Length of their common prefix."""
STEPS = ((1, 1, 1), (2, 1, 3), (1,))
"""Continuations from the cache: numbers of tokens appended to the first, second, ... sequence in each pass."""


def dependent_product(decoder: Decoder) -> str | None:
    """Return the first product with weights whose rows depend on their number, such as `576x3072 at 33 rows`, or None.

    Tests each shape once, with the model's own weights and a nonzero adapter, as computed in sampling and in
    learning."""
    generator = torch.Generator().manual_seed(0)
    for projection in _distinct(decoder):
        stand_in = _stand_in(projection, generator)

        def project(x: Tensor, stand_in: Projection = stand_in) -> Tensor:
            return stand_in(x, 0, "").detach()

        width, packed = projection.weight.shape[1], projection.packed.used_for(projection.weight)
        if (count := _differs(decoder, project if packed else None, project, width, COUNTS)) is not None:
            return f"{projection.weight.shape[1]}x{projection.weight.shape[0]} at {count} rows"
        for adapter in stand_in.adapters.values():
            out = sum(len(down) for down in adapter.down)
            place = (decoder.dtype, decoder.device, torch.get_num_threads())
            if (count := _narrow_product_differs(width, out, *place, decoder.rows, products.linear)) is not None:
                return f"{width}x{out} at {count} rows"

    def learned(x: Tensor) -> Tensor:
        return products.by_rows(lambda part: products.linear(part, decoder.lm_head.weight), x, decoder.rows).detach()

    vocabulary, hidden = decoder.lm_head.weight.shape
    sampled = decoder.logits if decoder.lm_head.packed.used_for(decoder.lm_head.weight) else None
    if (count := _differs(decoder, sampled, learned, hidden, HEAD_COUNTS)) is not None:
        return f"{hidden}x{vocabulary} at {count} rows"
    return None


def _differs(
    decoder: Decoder,
    sampled: Callable[[Tensor], Tensor] | None,
    learned: Callable[[Tensor], Tensor],
    width: int,
    counts: tuple[int, ...],
) -> int | None:
    """Return the first of `counts` at which rows differ from those of the largest product. `sampled` is None if
    sampling computes the same way as learning."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(counts[-1], width, generator=generator).to(decoder.device, decoder.dtype)
    with torch.enable_grad():
        expected = torch.cat([learned(part) for part in x.split(REFERENCE)])
    for count in counts:
        if sampled is not None:
            with torch.no_grad():
                if not torch.equal(sampled(x[:count]), expected[:count]):
                    return count
        with torch.enable_grad():
            if not torch.equal(learned(x[:count]), expected[:count]):
                return count
    return None


def dependent_attention(decoder: Decoder) -> str | None:
    """Return a product of attention, such as `queries x keys at 2 rows`, whose rows depend on their number, or None."""
    place = (decoder.dtype, decoder.device, torch.get_num_threads())
    return _dependent_attention(decoder.head_dim, decoder.group, *place, decoder.queries, products.batched)


# The results of the two tests with many rows are kept: they depend on shapes and kernels only.


@lru_cache(maxsize=64)
def _dependent_attention(
    head_dim: int,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    rows: Rows,
    kernel: Callable[[Tensor, Tensor], Tensor],
) -> str | None:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    keys, values = draw(1, KEYS, head_dim).transpose(1, 2), draw(1, KEYS, head_dim)
    queries = draw(SCANNED_QUERIES, head_dim)
    weights = torch.softmax(draw(SCANNED_QUERIES, KEYS), -1)
    for name, x, other in (("queries x keys", queries, keys), ("weights x values", weights, values)):

        def product(part: Tensor, other: Tensor = other) -> Tensor:
            return products.batched_by_rows(part[None], other, rows)[0]

        counts = tuple(group * count for count in FEW_COUNTS)
        if (count := _first_differing(product, x, counts)) is not None:
            return f"{name} at {count} rows"
    return None


@lru_cache(maxsize=64)
def _narrow_product_differs(
    width: int,
    out: int,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    rows: Rows,
    kernel: Callable[..., Tensor],
) -> int | None:
    """Return the first of `FEW_COUNTS` at which a row of a product with an adapter's weight [out, width] differs from
    that of a large product."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(out, width, generator=generator).div_(width**0.5).to(device, dtype)
    x = torch.randn(SCANNED, width, generator=generator).to(device, dtype)

    def product(part: Tensor) -> Tensor:
        return products.by_rows(lambda own: products.linear(own, weight), part, rows)

    return _first_differing(product, x, FEW_COUNTS)


@torch.no_grad()
def _first_differing(product: Callable[[Tensor], Tensor], x: Tensor, counts: Sequence[int]) -> int | None:
    """Return the first of `counts` at which a row of `product` of x [n, k] differs from that of a large product."""
    expected = torch.cat([product(part) for part in x.split(REFERENCE)])
    for count in counts:
        if not torch.equal(torch.cat([product(part) for part in x.split(count)]), expected):
            return count
    return None


def _distinct(decoder: Decoder) -> list[Projection]:
    """Return one projection of each shape, with and without adapters."""
    found: dict[tuple[object, ...], Projection] = {}
    for projection in decoder.projections().values():
        adapter = next(iter(projection.adapters.values()), None)
        ranks = () if adapter is None else tuple(down.shape[0] for down in adapter.down)
        found.setdefault((projection.weight.shape, projection.bias is None, ranks), projection)
    return list(found.values())


def _stand_in(projection: Projection, generator: torch.Generator) -> Projection:
    """Return the same weight with a random adapter: a new adapter adds zeros, which show no rounding."""
    bias = None if projection.bias is None else projection.bias.detach()
    stand_in = Projection(projection.weight.detach(), bias, projection.names, projection.sizes)
    stand_in.rows, stand_in.packed.allowed = projection.rows, projection.packed.allowed
    if (adapter := next(iter(projection.adapters.values()), None)) is not None:
        n_in, rank = projection.weight.shape[1], adapter.down[0].shape[0]
        random = Adapter(projection.names, projection.sizes, n_in, rank, 1.0)
        random.reset(generator)
        with torch.no_grad():
            for up in random.up:
                up.copy_(torch.randn(up.shape, generator=generator))
        stand_in.add_adapter("", random.to(projection.weight.device))
    return stand_in


def dependent_pass(decoder: Decoder) -> str | None:
    """Return where hidden states depend on the batch: whole sequences alone versus together, or continued from the
    cache. None if all are identical to the bit. Runs only the last layer, as all are alike."""
    generator = torch.Generator().manual_seed(2)
    vocabulary = decoder.embed.shape[0]
    shared = torch.randint(vocabulary, (SHARED,), generator=generator).tolist()
    sequences = [
        (*shared, *torch.randint(vocabulary, (length - SHARED,), generator=generator).tolist()) for length in LENGTHS
    ]
    with _last_layer(decoder):
        with torch.enable_grad():
            expected = [_whole(decoder, [sequence])[0] for sequence in sequences]
            together = _whole(decoder, sequences)
        if not all(torch.equal(one, other) for one, other in zip(expected, together, strict=True)):
            return "sequences alone and together"
        with torch.no_grad():
            return _continued(decoder, sequences, expected)


@contextmanager
def _last_layer(decoder: Decoder) -> Iterator[None]:
    """Reduce `decoder` to its last layer inside the context."""
    layers = decoder.layers
    decoder.layers = layers[-1:]
    assert isinstance(decoder.layers[0], Layer)
    try:
        yield
    finally:
        decoder.layers = layers


def _whole(decoder: Decoder, sequences: list[tuple[int, ...]]) -> list[Tensor]:
    """Return hidden states of each sequence's tokens, computed in one pass."""
    tree = merge_prefixes(sequences, decoder.device)
    attend = TreeAttention(tree, decoder.group, decoder.dtype, queries=decoder.queries)
    hidden = decoder(tree.tokens, tree.positions, attend).detach()
    return [hidden[torch.tensor(path, device=decoder.device)] for path in tree.paths]


def _continued(decoder: Decoder, sequences: list[tuple[int, ...]], expected: list[Tensor]) -> str | None:
    cached = CachedDecoder(decoder)
    slots = [Slot(index) for index in range(len(sequences))]
    own = sum(step[0] for step in STEPS), sum(step[1] for step in STEPS if len(step) > 1)
    starts = [len(sequence) - own[0] - own[1] for sequence in sequences]
    prompts = [sequence[:start] for sequence, start in zip(sequences, starts, strict=True)]
    begun = cached.begin(prompts, [SlotAssignment(slot, None) for slot in slots])
    if not all(torch.equal(begun[at], expected[at][starts[at] - 1]) for at in range(len(sequences))):
        return "prompts alone and together"
    for step in STEPS:
        # Fewer sequences continue in each pass: first all, finally one.
        going = slots[: len(slots) if len(step) > 2 else 1]
        deltas = [
            sequences[slot.index][len(slot.tokens) : len(slot.tokens) + step[slot.index % len(step)]] for slot in going
        ]
        ends = cached.extend(going, deltas)
        for slot, end in zip(going, ends, strict=True):
            if not torch.equal(end, expected[slot.index][len(slot.tokens) - 1]):
                return "sequences whole and continued from the cache"
    return None


def slowdown(decoder: Decoder, exact: tuple[Rows, Rows], fast: tuple[Rows, Rows], enough: float) -> float:
    """Return the larger ratio of `exact` to `fast` times, over a learning pass and a decoding step; best of several
    alternated runs. Stops early if far above `enough`. Leaves the decoder computing by `fast`."""
    times: dict[tuple[str, bool], float] = {}
    ratio = 1.0
    for turn in range(5):
        for is_exact in (False, True):
            decoder.compute_by(*(exact if is_exact else fast))
            for name, work in (("learn", _learn), ("decode", _decode)):
                elapsed = work(decoder)
                if turn:  # the first run builds kernels
                    key = (name, is_exact)
                    times[key] = min(elapsed, times.get(key, elapsed))
        if turn:
            ratio = max(times[name, True] / times[name, False] for name in ("learn", "decode"))
            if turn > 1 and ratio > 1.5 * enough:
                break
    decoder.compute_by(*fast)
    return ratio


def _random_sequences(decoder: Decoder, count: int, length: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(decoder.embed.shape[0], (count, length), generator=generator)
    return [tuple(row) for row in drawn.tolist()]


def _learn(decoder: Decoder) -> float:
    """Time a pass over 256 tokens, with gradient if anything is trainable; in seconds."""
    sequences = _random_sequences(decoder, 4, 64)
    began = time.perf_counter()
    tree = merge_prefixes(sequences, decoder.device)
    attend = TreeAttention(tree, decoder.group, decoder.dtype, queries=decoder.queries)
    wanted = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    with torch.set_grad_enabled(bool(wanted)):
        hidden = decoder(tree.tokens, tree.positions, attend)
        with torch.no_grad():
            products.by_rows(lambda part: products.linear(part, decoder.lm_head.weight), hidden[:128], decoder.rows)
        if wanted:
            torch.autograd.grad(hidden.float().square().sum(), wanted, allow_unused=True)
    return time.perf_counter() - began


@torch.no_grad()
def _decode(decoder: Decoder) -> float:
    """Time four tokens for each of sixteen sequences, in seconds."""
    cached = CachedDecoder(decoder)
    slots = [Slot(index) for index in range(16)]
    prompts = _random_sequences(decoder, len(slots), 16)
    cached.begin(prompts, [SlotAssignment(slot, None) for slot in slots])
    began = time.perf_counter()
    for _ in range(4):
        decoder.logits(cached.extend(slots, [(1,)] * len(slots)))
    return time.perf_counter() - began
