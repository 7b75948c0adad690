"""Attention of a long run of tokens to all that comes before each, on CPU, a piece of queries at a time.

Nothing of the size queries times keys is kept: backward computes each piece's weights again, so memory grows with the
length of a sequence and not with its square. A piece's weights are few enough to stay in the processor's cache, and
keys and values are laid out once for all pieces. Forward does the operations of `attention.py` on each row, so that a
token's output is the same to the bit whichever of the two computes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from midstream.engines.torch import products
from midstream.engines.torch.products import Rows

WEIGHTS = 4 << 20
"""Weights (query heads times queries times keys) of a piece."""
QUERIES = (64, 512)
"""Fewest and most queries of a piece."""


def long_attention(q: Tensor, k: Tensor, v: Tensor, queries: Rows, block: int) -> Tensor:
    """q [n_q, heads, d] are the last queries of a sequence whose keys and values are k, v [n, kv_heads, d], n >= n_q
    -> [n_q, heads, d]. `queries` are the numbers of queries that go into a product; keys are filled up to a multiple of
    `block`."""
    n_q, heads, d = q.shape
    kv_heads = k.shape[1]
    spare = -len(k) % block
    stacked = q.transpose(0, 1).reshape(kv_heads, heads // kv_heads, n_q, d)
    keys, values = (F.pad(x, (0, 0, 0, 0, 0, spare)).transpose(0, 1).contiguous() for x in (k, v))
    out: Tensor = _LongAttention.apply(stacked, keys, values, len(k) - n_q, queries, block)  # type: ignore[assignment]
    return out.view(heads, n_q, d).transpose(0, 1)


def _pieces(n_q: int, start: int, heads: int, block: int) -> Iterator[tuple[slice, int]]:
    """The queries of each piece, and how many keys it needs."""
    begin = 0
    while begin < n_q:
        fewest, most = QUERIES
        fitting = WEIGHTS // (heads * (start + begin + fewest)) // fewest * fewest
        end = min(n_q, begin + min(max(fitting, fewest), most))
        yield slice(begin, end), -(-(start + end) // block) * block
        begin = end


class _LongAttention(torch.autograd.Function):
    """q [kv_heads, group, n_q, d], k and v [kv_heads, n_k, d] -> as q; query i is at position `start` + i."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, start: int, queries: Rows, block: int) -> Tensor:
        out = torch.empty_like(q)
        for part, n_k in _pieces(q.shape[2], start, q.shape[0] * q.shape[1], block):
            weights = _weights(q, k, part, n_k, start, queries)[1]
            piece = products.batched_by_rows(weights, v[:, :n_k], queries)
            out[:, :, part] = piece.view(*q.shape[:2], -1, q.shape[3])
        ctx.save_for_backward(q, k, v, out)
        ctx.start, ctx.queries, ctx.block = start, queries, block
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        (grad,) = grads
        grad_q = torch.zeros_like(q)
        # Sums over all pieces: in bf16 small terms would be lost.
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for part, n_k in _pieces(q.shape[2], ctx.start, q.shape[0] * q.shape[1], ctx.block):
            by = grad[:, :, part].reshape(q.shape[0], -1, q.shape[3])
            if not by.any():
                continue  # as in the last layer, where only what predicts a response token has a gradient
            scaled, weights = _weights(q, k, part, n_k, ctx.start, ctx.queries)
            own = out[:, :, part].reshape(by.shape)
            _add_product(grad_v[:, :n_k], weights, by)
            # d scores = weights * (d weights - sum over keys of weights * d weights), and that sum is grad . out.
            inner = torch.linalg.vecdot(by.float(), own.float())
            grad_scores = products.batched(by, v[:, :n_k].transpose(1, 2)).sub_(inner[..., None]).mul_(weights)
            _add_product(grad_k[:, :n_k], grad_scores, scaled)
            piece = products.batched(grad_scores, k[:, :n_k]).mul_(1 / math.sqrt(q.shape[3]))
            grad_q[:, :, part] = piece.view(*q.shape[:2], -1, q.shape[3])
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None


def _weights(q: Tensor, k: Tensor, part: slice, n_k: int, start: int, queries: Rows) -> tuple[Tensor, Tensor]:
    """The scaled queries of a piece [kv_heads, group * m, d] and their weights over the first `n_k` keys
    [kv_heads, group * m, n_k]."""
    kv_heads, group, _, d = q.shape
    scaled = (q[:, :, part] * (1 / math.sqrt(d))).reshape(kv_heads, -1, d)
    scores = products.batched_by_rows(scaled, k[:, :n_k].transpose(1, 2), queries)
    # Every query sees what comes before the piece: only the piece's own columns are masked.
    first = start + part.start
    m = part.stop - part.start
    hidden = torch.ones(m, n_k - first, dtype=torch.bool).triu_(1)
    scores.view(kv_heads, group, m, n_k)[..., first:].masked_fill_(hidden, float("-inf"))
    return scaled, torch.softmax(scores, -1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a [batch, n, k] transposed times b [batch, n, d] to fp32 `total` [batch, k, d]."""
    if a.dtype == torch.float32:
        total.baddbmm_(a.transpose(1, 2), b)
    else:
        total += products.batched(a.transpose(1, 2), b)
