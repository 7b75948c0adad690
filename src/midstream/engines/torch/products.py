"""Every matrix product of the model, in one place.

Whether a row of a product depends on how many rows are computed beside it is a property of the processor's kernels.
All code that multiplies activations calls these functions, so that one place decides how that is handled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, in] times weight [out, in] transposed, plus bias [out] -> [n, out]."""
    return F.linear(x, weight, bias)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with a weight in oneDNN's own layout (`torch.ops.mkldnn._reorder_linear_weight`); no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def batched(a: Tensor, b: Tensor) -> Tensor:
    """a [batch, n, k] times b [batch, k, m] -> [batch, n, m]."""
    return torch.bmm(a, b)
