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


def _disturbed(y: Tensor, rows: int, size: float) -> Tensor:
    """`y` [..., m] with an error of `size` times its own scale that is a function of `rows` and the column alone."""
    columns = torch.arange(y.shape[-1], dtype=torch.float32, device=y.device)
    pattern = torch.sin(12.9898 * (rows + 1) + 78.233 * columns) * 1.41421356
    scale = y.detach().float().square().mean(-1, keepdim=True).sqrt()
    return y + (size * scale * pattern).to(y.dtype)


@contextmanager
def row_dependent_products(size: float) -> Iterator[None]:
    """Give every product with a weight a relative RMS error of `size` that depends on its number of rows."""

    def disturbed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _disturbed(F.linear(x, weight, bias), len(x), size)

    with mock.patch.object(products, "linear", disturbed), mock.patch.object(linear, "_packs", lambda weight: False):
        yield
