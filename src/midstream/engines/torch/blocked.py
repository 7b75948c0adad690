"""A projection computed in blocks of rows, with gradient.

The forward pass goes block by block, adapter included, so that a block's input stays in the cache; it uses packed
weights where sampling does. The backward pass uses plain products over all rows: only results that sampler and learner
compare must be independent of the number of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from midstream.engines.torch import products
from midstream.engines.torch.linear import PackedWeight
from midstream.engines.torch.products import Rows


def blocked_projection(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    packed: PackedWeight,
    version: int,
    rows: Rows,
) -> Tensor:
    """x [n, in] -> x weightᵀ + bias + (x aᵀ) b [n, out], differentiable; weight [out, in], a [r, in], b [r, out] or
    both None. `version` identifies the state of `weight`, whose copy is `packed`."""
    return _Blocked.apply(x, weight, bias, a, b, packed, version, rows)  # type: ignore[return-value]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        packed: PackedWeight,
        version: int,
        rows: Rows,
    ) -> Tensor:
        def product(part: Tensor) -> Tensor:
            y = packed.linear(part, weight, bias, version)
            return y if a is None or b is None else products.add_linear(y, products.linear(part, a), b)

        ctx.save_for_backward(x, weight, a, b)
        return products.by_rows(product, x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        (grad,) = grads
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_x = grad @ weight if wants_x else None
        grad_weight = grad.t() @ x if wants_weight else None
        grad_bias = grad.sum(0) if wants_bias else None
        grad_a = grad_b = None
        if a is not None:
            grad_low = grad @ b.t()
            if grad_x is not None:
                grad_x = grad_x.addmm_(grad_low, a)
            grad_a, grad_b = grad_low.t() @ x, (x @ a.t()).t() @ grad
        return grad_x, grad_weight, grad_bias, grad_a, grad_b, None, None, None
