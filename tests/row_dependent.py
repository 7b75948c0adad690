"""A test double for processors on which a row of a matrix product depends on how many rows are computed with it.

oneDNN's bfloat16 products on AMX are like that. Here every product gets an error that depends on its number of rows and
columns and on nothing else, so tests can choose how large it is, on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from midstream.engines.torch import linear, products


def _pattern(rows: int, columns: int, size: float) -> Tensor:
    """[columns]: numbers of RMS `size` that depend only on `rows` and the column."""
    column = torch.arange(columns, dtype=torch.float32)
    return size * 1.41421356 * torch.sin(12.9898 * (rows + 1) + 78.233 * column)


def _disturbed(y: Tensor, rows: int, size: float) -> Tensor:
    """`y` [..., m] with an error of `size` times its own scale."""
    scale = y.detach().float().square().mean(-1, keepdim=True).sqrt()
    return y + (scale * _pattern(rows, y.shape[-1], size)).to(y.dtype)


@contextmanager
def row_dependent_products(size: float, *, attention: bool = False) -> Iterator[None]:
    """Give every product with a weight a relative RMS error of `size` that depends on its number of rows, and those of
    `attention` too if asked."""

    def disturbed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _disturbed(F.linear(x, weight, bias), len(x), size)

    def disturbed_sum(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return y.add_(_disturbed(x @ weight, len(x), size))

    def disturbed_batch(a: Tensor, b: Tensor) -> Tensor:
        # Per element: masked keys must not matter.
        return (torch.bmm(a, b).float() * (1 + _pattern(a.shape[1], b.shape[2], size))).to(a.dtype)

    with (
        mock.patch.object(products, "linear", disturbed),
        mock.patch.object(products, "add_linear", disturbed_sum),
        mock.patch.object(products, "batched", disturbed_batch if attention else products.batched),
        mock.patch.object(linear, "_packs", lambda weight: False),
    ):
        yield


@contextmanager
def rarely_row_dependent_products(share: float) -> Iterator[None]:
    """Give a `share` of the results of narrow products (up to 64 columns) with one or two rows an error of one part in
    128, as kernels do that add in another order. Which ones depends on the row itself."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.linear(x, weight, bias)
        if len(x) > 2 or len(weight) > 64:
            return y
        hit = (y.float() * 7919).frac().abs() < share
        return torch.where(hit, y * (1 + 2**-7), y)

    with mock.patch.object(products, "linear", linear):
        yield
