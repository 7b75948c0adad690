"""Attention over flat token lists: `TreeAttention` for whole sequences that share prefixes, and `SlotAttention` for
sequences that continue from a key/value cache.

Both arrange a query's keys in sequence order from position 0, padded at the end to a multiple of `BLOCK`, and use the
same kernel. So a token's output does not depend on the size of its batch, to the bit, on CPUs where a kernel's rows do
not depend on their number (see `numerics.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from midstream.engines.torch import products
from midstream.engines.torch.long_attention import long_attention
from midstream.engines.torch.products import Rows

BLOCK = 32
LONG = 4 << 20
"""Attention weights (queries times keys) from which a chain is cut into pieces. Each piece is computed separately, and
recomputed in the backward pass, so that memory grows linearly with the sequence length instead of quadratically. On CPU
`long_attention.py` does this; elsewhere each piece is a separate bucket."""
PIECE = 512
"""Queries per piece, except on CPU."""
WHOLE = 64
"""Token trees are padded to a multiple of this: oneDNN builds and caches kernels for each distinct number of rows."""
ANY = Rows()


def _ceil(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, queries: Rows) -> Tensor:
    """q [rows, heads, n_q, d]; k, v [rows, kv_heads, n_k, d]; mask [rows, 1, group * n_q, n_k] additive -> as q.

    `queries` sets the row counts of the products. Query heads that share a key head are stacked along the query axis,
    so keys are never repeated in memory.
    """
    rows, heads, n_q, d = q.shape
    kv_heads = k.shape[1]
    stacked = q.reshape(rows, kv_heads, heads // kv_heads * n_q, d)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(stacked, k, v, attn_mask=mask).view(rows, heads, n_q, d)
    # torch's CPU kernel rounds differently for different query counts; plain matrix products do not.
    flat = (stacked * (1 / math.sqrt(d))).reshape(rows * kv_heads, -1, d)
    keys, values = k.reshape(rows * kv_heads, -1, d), v.reshape(rows * kv_heads, -1, d)
    run = _Products.apply if torch.is_grad_enabled() else _attended
    return run(flat, keys, values, mask, queries).view(rows, heads, n_q, d)  # type: ignore[misc]


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, queries: Rows) -> Tensor:
    return _products(q, k, v, mask, queries)[0]


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, queries: Rows) -> tuple[Tensor, Tensor]:
    """q [rows * kv_heads, n_q, d], k and v [rows * kv_heads, n_k, d], mask as above -> as q, and the attention
    weights."""
    scores = products.batched_by_rows(q, k.transpose(1, 2), queries)
    scores.view(len(mask), -1, *scores.shape[1:]).add_(mask)
    # In bf16, too, sums are accumulated in fp32.
    weights = torch.softmax(scores, -1)
    return products.batched_by_rows(weights, v, queries), weights


class _Products(torch.autograd.Function):
    """`_products`, saving only the attention weights of all tensors of size queries x keys."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, queries: Rows) -> Tensor:
        out, weights = _products(q, k, v, mask, queries)
        ctx.save_for_backward(q, k, v, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out = ctx.saved_tensors
        (grad,) = grads
        grad_v = products.batched(weights.transpose(1, 2), grad)
        # d scores = weights * (d weights - sum over keys of weights * d weights), and that sum is grad . out.
        inner = torch.linalg.vecdot(grad.float(), out.float())
        grad_scores = products.batched(grad, v.transpose(1, 2)).sub_(inner[..., None]).mul_(weights)
        grad_k = products.batched(grad_scores.transpose(1, 2), q)
        return products.batched(grad_scores, k), grad_k, grad_v, None, None


def _causal_mask(query_positions: Tensor, n_keys: int, group: int, dtype: torch.dtype) -> Tensor:
    """[rows, 1, group * n_q, n_keys]: 0 where a key's position is at most the query's, else -inf."""
    visible = torch.arange(n_keys, device=query_positions.device) <= query_positions[:, :, None]
    mask = torch.zeros(visible.shape, dtype=dtype, device=query_positions.device).masked_fill_(~visible, float("-inf"))
    return mask[:, None].repeat(1, 1, group, 1)


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Sequences with merged prefixes: each distinct prefix is one token, computed once.

    `paths[s]` are the flat indices of sequence s from position 0. `chains` are the runs of tokens between branch
    points, each as (path up to its end, start index in the path): every token of a sequence is in exactly one chain."""

    tokens: Tensor
    positions: Tensor
    paths: list[list[int]]
    chains: list[tuple[list[int], int]]
    size: int
    """Number of distinct tokens. Further entries of `tokens`, up to a multiple of `WHOLE`, are padding."""


def merge_prefixes(
    sequences: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    adapters: Sequence[str | None] | None = None,
) -> TokenTree:
    """Return the prefix tree of token id `sequences`, in order of first appearance; equal sequences share every
    token, unless they have different `adapters`."""
    roots: dict[str | None, int] = {}
    children: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    positions: list[int] = []
    fan_out: list[int] = []
    paths: list[list[int]] = []
    for at, sequence in enumerate(sequences):
        name = None if adapters is None else adapters[at]
        node, path = roots.setdefault(name, -1 - len(roots)), []
        for position, token in enumerate(sequence):
            child = children.get((node, token))
            if child is None:
                child = children[(node, token)] = len(tokens)
                tokens.append(token)
                positions.append(position)
                fan_out.append(0)
                if node >= 0:
                    fan_out[node] += 1
            path.append(child)
            node = child
        paths.append(path)
    chains: list[tuple[list[int], int]] = []
    placed: set[int] = set()
    # Longest first: a sequence that is a prefix of another adds no chain.
    for path in sorted(paths, key=len, reverse=True):
        start = next((i for i, node in enumerate(path) if node not in placed), len(path))
        for place in range(start, len(path)):
            placed.add(path[place])
            if fan_out[path[place]] != 1 or place == len(path) - 1:
                chains.append((path[: place + 1], start))
                start = place + 1
    size = len(tokens)
    spare = -size % WHOLE
    tokens += [tokens[0]] * spare
    positions += [0] * spare
    return TokenTree(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), paths, chains, size)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Chains of similar length, padded to one shape: flat indices of queries and keys, the queries' positions, and
    their mask; for pieces of long chains the mask is built on demand."""

    rows: int
    query: Tensor
    key: Tensor
    positions: Tensor
    mask: Tensor | None


class TreeAttention:
    """Attention inside a `TokenTree`: each chain is a row whose queries attend over its whole path."""

    def __init__(
        self, tree: TokenTree, group: int, dtype: torch.dtype, keep: bool = False, queries: Rows = ANY
    ) -> None:
        device = tree.tokens.device
        self._queries, self._group, self._dtype = queries, group, dtype
        self._buckets: list[_Bucket] = []
        place = torch.zeros(len(tree.tokens), dtype=torch.long)
        offset = 0
        short = _similar([chain for chain in tree.chains if not _is_long(chain)])
        long = [chain for chain in tree.chains if _is_long(chain)]
        whole = _computes_long(device)
        pieces = [] if whole else [[piece] for chain in long for piece in _pieces(chain)]
        for number, chains in enumerate([*short, *pieces]):
            n_q = max(len(path) - start for path, start in chains)
            n_k = _ceil(max(len(path) for path, _ in chains))
            query = torch.zeros(len(chains), n_q, dtype=torch.long)
            key = torch.zeros(len(chains), n_k, dtype=torch.long)
            positions = torch.zeros(len(chains), n_q, dtype=torch.long)
            for row, (path, start) in enumerate(chains):
                own = torch.tensor(path[start:])
                query[row, : len(own)] = own
                key[row, : len(path)] = torch.tensor(path)
                positions[row, : len(own)] = torch.arange(start, len(path))
                place[own] = offset + row * n_q + torch.arange(len(own))
            offset += len(chains) * n_q
            positions = positions.to(device)
            mask = None if number >= len(short) else _causal_mask(positions, n_k, group, dtype)
            indices = query.flatten().to(device), key.flatten().to(device)
            self._buckets.append(_Bucket(len(chains), *indices, positions, mask))
        self._long: list[tuple[Tensor, Tensor]] = []
        """Of each chain that `long_attention` computes, the indices of its queries and of all its keys in the flat
        list."""
        for path, start in long if whole else ():
            key = torch.tensor(path)
            place[key[start:]] = offset + torch.arange(len(path) - start)
            offset += len(path) - start
            self._long.append((key[start:], key))
        self._place = place.to(device)
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None
        """Keys and values [n, kv_heads, d] of every layer; None unless requested."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kept is not None:
            self.kept.append((k, v))
        outs: list[Tensor] = []
        for bucket in self._buckets:
            if bucket.mask is None and torch.is_grad_enabled():
                outs.append(checkpoint(self._attend, bucket, q, k, v, use_reentrant=False, preserve_rng_state=False))
            else:
                outs.append(self._attend(bucket, q, k, v))
        for query, key in self._long:
            own_q, all_k, all_v = q.index_select(0, query), k.index_select(0, key), v.index_select(0, key)
            outs.append(long_attention(own_q, all_k, all_v, self._queries, BLOCK).flatten(1))
        return (torch.cat(outs) if len(outs) > 1 else outs[0]).index_select(0, self._place)

    def _attend(self, bucket: _Bucket, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention output of one bucket's queries [rows * n_q, heads * d]."""
        rows_q, rows_k, rows_v = (
            # index_select: its backward adds rows directly, while that of plain indexing sorts them first.
            flat.index_select(0, index).view(bucket.rows, -1, flat.shape[1], flat.shape[2]).transpose(1, 2)
            for flat, index in ((q, bucket.query), (k, bucket.key), (v, bucket.key))
        )
        mask = bucket.mask
        if mask is None:
            mask = _causal_mask(bucket.positions, rows_k.shape[2], self._group, self._dtype)
        out = _grouped_attention(rows_q, rows_k, rows_v, mask, self._queries)
        return out.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[2])


def _computes_long(device: torch.device) -> bool:
    """Whether `long_attention` is for this device."""
    return device.type == "cpu"


def _is_long(chain: tuple[list[int], int]) -> bool:
    path, start = chain
    return (len(path) - start) * len(path) > LONG


def _pieces(chain: tuple[list[int], int]) -> list[tuple[list[int], int]]:
    """Cut a chain after every `PIECE` queries: each piece attends to the path up to its end."""
    path, start = chain
    return [(path[: begin + PIECE], begin) for begin in range(start, len(path), PIECE)]


def _similar(chains: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """Sort chains into buckets in which the shortest has at least half the length of the longest."""
    buckets: list[list[tuple[list[int], int]]] = []
    longest = 0
    for chain in sorted(chains, key=lambda chain: (chain[1] - len(chain[0]), len(chain[0]))):
        length = len(chain[0]) - chain[1]
        if not buckets or length * 2 < longest:
            buckets.append([])
            longest = length
        buckets[-1].append(chain)
    return buckets


class SlotCache:
    """Keys and values of sequences, one slot each; grows in number and length of slots."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        # [layers, slots, kv_heads, capacity, head_dim], one tensor for all layers.
        self.keys = torch.zeros(layers, 0, kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.values = self.keys

    @property
    def capacity(self) -> int:
        """Most tokens a slot holds."""
        return self.keys.shape[3]

    def reserve(self, slots: int, length: int) -> None:
        """Grow to `slots` slots of `length` tokens, and no more: products over a fully used cache read it in place."""
        slots, capacity = max(slots, self.keys.shape[1]), max(_ceil(length), self.capacity)
        if (slots, capacity) != (self.keys.shape[1], self.capacity):
            self.keys, self.values = _grown(self.keys, slots, capacity), _grown(self.values, slots, capacity)

    def fill(self, slots: Sequence[int], kept: list[tuple[Tensor, Tensor]], path: Sequence[int]) -> None:
        """Copy a sequence computed by a keeping `TreeAttention`, with its tokens at `path`, into each of `slots`."""
        run = path[-1] - path[0] + 1 == len(path)  # contiguous: a slice suffices
        index = slice(path[0], path[-1] + 1) if run else torch.tensor(path, device=self.keys.device)
        for layer, (k, v) in enumerate(kept):
            keys, values = k[index].transpose(0, 1), v[index].transpose(0, 1)
            for slot in slots:
                self.keys[layer, slot, :, : len(path)] = keys
                self.values[layer, slot, :, : len(path)] = values

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy positions `start` to `stop` of slot `source` to slot `target`."""
        for part in (self.keys, self.values):
            part[:, target, :, start:stop] = part[:, source, :, start:stop]

    def clear(self) -> None:
        """Free the memory and reset all slots."""
        layers, _, kv_heads, _, head_dim = self.keys.shape
        self.keys = self.values = self.keys.new_zeros(layers, 0, kv_heads, 0, head_dim)


def _grown(old: Tensor, slots: int, capacity: int) -> Tensor:
    layers, had, kv_heads, held, head_dim = old.shape
    new = old.new_zeros(layers, slots, kv_heads, capacity, head_dim)
    new[:, :had, :, :held] = old
    return new


class SlotAttention:
    """Attention of new tokens over their slots: row r appends `counts[r]` tokens to slot `slots[r]`, which holds
    `lengths[r]`.

    Flat tokens are ordered by row. Writes their keys and values to the cache.
    """

    def __init__(
        self,
        cache: SlotCache,
        slots: Sequence[int],
        lengths: Sequence[int],
        counts: Sequence[int],
        group: int,
        queries: Rows = ANY,
    ) -> None:
        device = cache.keys.device
        self._queries = queries
        self._cache = cache
        n_q = max(counts)
        # Full slots, masked: a slice would have to be copied in every layer.
        n_k = cache.capacity
        count = torch.tensor(counts)
        self._slot = torch.tensor(slots, device=device).repeat_interleave(count.to(device))
        column = torch.cat([torch.arange(c) for c in counts])
        start = torch.tensor(lengths).repeat_interleave(count)
        self.positions = (start + column).to(device)
        low, high = min(slots), max(slots) + 1
        # Slots are views of one tensor: a contiguous range costs nothing, a few scattered ones are cheaper to copy.
        self._run = slice(low, high) if len(slots) * 2 > high - low else None
        rows = high - low if self._run else len(slots)
        row = torch.tensor([slot - low for slot in slots] if self._run else list(range(len(slots))))
        self._row = row.repeat_interleave(count).to(device)
        self._column = column.to(device)
        self._index = None if self._run else torch.tensor(slots, device=device)
        self._shape = (rows, n_q, n_k)
        positions = torch.zeros(rows, n_q, dtype=torch.long, device=device)
        positions[self._row, self._column] = self.positions
        self._mask = _causal_mask(positions, n_k, group, cache.keys.dtype)
        self._dense = n_q == 1 and rows == len(slots) and (self._run is None or list(slots) == list(range(low, high)))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._slot, :, self.positions] = k
        values[self._slot, :, self.positions] = v
        rows, n_q, n_k = self._shape
        if self._run:
            rows_k, rows_v = keys[self._run, :, :n_k], values[self._run, :, :n_k]
        else:
            rows_k, rows_v = keys[self._index, :, :n_k], values[self._index, :, :n_k]
        if self._dense:
            return _grouped_attention(q[:, :, None], rows_k, rows_v, self._mask, self._queries).reshape(len(q), -1)
        padded = q.new_zeros(rows, n_q, q.shape[1], q.shape[2])
        padded[self._row, self._column] = q
        out = _grouped_attention(padded.transpose(1, 2), rows_k, rows_v, self._mask, self._queries)
        return out[self._row, :, self._column].reshape(len(q), -1)
