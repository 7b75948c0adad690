"""All matrix products of the model.

Whether a row of a product depends on the number of rows is a property of the processor's kernels. All code that
multiplies activations calls these functions: `Rows` specifies the allowed row counts, and `by_rows` and
`batched_by_rows` enforce them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Row counts for a product. Missing rows are padded with zeros."""

    at_least: int = 1
    """Minimum number of rows."""
    block: int | None = None
    """Exact number of rows per block; None computes all rows at once."""
    depth: int | None = None
    """Most terms per partial sum of a batched product; None sums all at once."""
    packed: bool = True
    """Whether sampling may use weights in oneDNN's packed layout."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, in] times weight [out, in] transposed, plus bias [out] -> [n, out]."""
    return F.linear(x, weight, bias)


def add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x [n, in] times weight [in, out] to y [n, out] in place; returns y."""
    return y.addmm_(x, weight)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with a weight in oneDNN's packed layout (`torch.ops.mkldnn._reorder_linear_weight`); no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def batched(a: Tensor, b: Tensor) -> Tensor:
    """a [batch, n, k] times b [batch, k, m] -> [batch, n, m]."""
    return torch.bmm(a, b)


def by_rows(product: Callable[[Tensor], Tensor], x: Tensor, rows: Rows) -> Tensor:
    """Compute `product` of x [n, in] -> [n, out] with the row counts that `rows` allows. Blocks have no gradient."""
    n = len(x)
    if rows.block is None:
        return product(x) if n >= rows.at_least else product(_filled(x, rows.at_least))[:n]
    if n == rows.block:
        return product(x)
    parts = (x[start : start + rows.block] for start in range(0, max(n, 1), rows.block))
    out: Tensor | None = None
    start = 0
    for part in parts:
        y = product(part if len(part) == rows.block else _filled(part, rows.block))
        if out is None:
            out = y.new_empty(n, y.shape[1])
        out[start : start + len(part)] = y[: len(part)]
        start += len(part)
    assert out is not None
    return out


def batched_by_rows(a: Tensor, b: Tensor, rows: Rows) -> Tensor:
    """`batched` with the row counts n of a [batch, n, k], and partial sums over k, that `rows` allows. Blocks and
    partial sums have no gradient."""
    n = a.shape[1]
    if rows.block is None:
        return _in_parts(a, b, rows) if n >= rows.at_least else _few(a, b, rows)
    out = a.new_empty(len(a), n, b.shape[2])
    for start in range(0, n, rows.block):
        part = a[:, start : start + rows.block]
        whole = part.contiguous() if part.shape[1] == rows.block else _filled(part, rows.block)
        out[:, start : start + rows.block] = _in_parts(whole, b, rows)[:, : part.shape[1]]
    return out


def _few(a: Tensor, b: Tensor, rows: Rows) -> Tensor:
    return _in_parts(_filled(a, rows.at_least), b, rows)[:, : a.shape[1]].contiguous()


def _in_parts(a: Tensor, b: Tensor, rows: Rows) -> Tensor:
    """`batched`, summed over `rows.depth` terms at a time, in fp32."""
    terms = a.shape[2]
    if rows.depth is None or terms <= rows.depth:
        return batched(a, b)
    out = batched(a[:, :, : rows.depth], b[:, : rows.depth]).float()
    for start in range(rows.depth, terms, rows.depth):
        part = slice(start, start + rows.depth)
        out += batched(a[:, :, part], b[:, part])
    return out.to(a.dtype)


def _filled(x: Tensor, rows: int) -> Tensor:
    """Pad x [..., n, k] with zeros -> [..., rows, k]."""
    return F.pad(x, (0, 0, 0, rows - x.shape[-2]))
