"""The modules of a decoder: fused projections, transformer blocks, the output layer.

They take flat token lists: x [n, hidden] holds the tokens of any number of sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midstream.engines.torch import products
from midstream.engines.torch.blocked import blocked_projection
from midstream.engines.torch.linear import PackedWeight
from midstream.engines.torch.lora import Adapter, AdapterChoice, AdapterRows
from midstream.engines.torch.products import Rows

AT_LEAST_TWO = Rows(at_least=2)
"""A single-row oneDNN product uses a different kernel, whose sums round differently."""

T = TypeVar("T")


class Attend(Protocol):
    """Attention over flat tokens: q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads * head_dim]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


LayerAttend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`Attend` of one layer."""


class Projection(nn.Module):
    """One matrix for projections that share an input, with their adapters."""

    def __init__(self, weight: Tensor, bias: Tensor | None, names: list[str], sizes: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.names, self.sizes = names, sizes
        self.adapters: dict[str, Adapter] = {}
        """By name, each registered as a module too (module names may not hold the dots that an adapter's may)."""
        self.packed = PackedWeight()
        self.rows = AT_LEAST_TWO
        self._cached: dict[str, tuple[int, Tensor, Tensor]] = {}

    def forward(self, x: Tensor, version: int, adapter: AdapterChoice) -> Tensor:
        """x [n, in] -> [n, out], with `adapter` by its full name. `version` identifies the state of the weights;
        outside autograd it keys cast and packed copies. An adapter by row has no gradient."""
        base_version = version if self.weight.requires_grad else 0
        if isinstance(adapter, AdapterRows):
            return self._by_row(x, version, base_version, adapter)
        a, b = self._matrices(adapter, x.dtype, version)
        if self.rows.block is not None and torch.is_grad_enabled():
            return blocked_projection(x, self.weight, self.bias, a, b, self.packed, base_version, self.rows)
        return products.by_rows(lambda part: self._product(part, base_version, a, b), x, self.rows)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Add `adapter`, or put it in place of the one called `name`."""
        self.adapters[name] = adapter
        self._register_adapters()

    def remove_adapter(self, name: str) -> None:
        if self.adapters.pop(name, None) is not None:
            self._register_adapters()

    def _register_adapters(self) -> None:
        for key in [key for key, _ in self.named_children() if key.startswith("adapter_")]:
            delattr(self, key)
        for place, adapter in enumerate(self.adapters.values()):
            self.add_module(f"adapter_{place}", adapter)
        self._cached.clear()

    @torch.no_grad()
    def merge_adapter(self, name: str) -> None:
        """Merge an adapter into the weight, `W + (alpha / rank) B A` computed in fp32, and remove it."""
        if (adapter := self.adapters.get(name)) is not None:
            a, b = adapter.matrices(torch.float32)
            self.weight.copy_(self.weight.float().addmm_(b.t(), a))
            self.remove_adapter(name)
            self.packed.forget()

    def forget_copies(self) -> None:
        """Drop cast and packed copies: the weights changed, and the version may not have."""
        self._cached.clear()
        self.packed.forget()

    def _matrices(self, name: str | None, dtype: torch.dtype, version: int) -> tuple[Tensor | None, Tensor | None]:
        """Return (A, B) of an adapter in `dtype`; None without one."""
        adapter = None if name is None else self.adapters.get(name)
        if name is None or adapter is None:
            return None, None
        if torch.is_grad_enabled():
            return adapter.matrices(dtype)
        cached = self._cached.get(name)
        if cached is None or cached[0] != version:
            cached = self._cached[name] = (version, *adapter.matrices(dtype))
        return cached[1:]

    def _product(self, x: Tensor, version: int, a: Tensor | None, b: Tensor | None) -> Tensor:
        y = self.packed.linear(x, self.weight, self.bias, version)
        return y if a is None or b is None else products.add_linear(y, products.linear(x, a), b)

    def _by_row(self, x: Tensor, version: int, base_version: int, choice: AdapterRows) -> Tensor:
        """One base product for all rows, to which each adapter's rows add theirs, by the same operations as
        `_product`."""
        y = products.by_rows(lambda part: self._product(part, base_version, None, None), x, self.rows)
        width = x.shape[1]
        for name, rows in choice.rows.items():
            a, b = self._matrices(name, x.dtype, version)
            if a is None or b is None:
                continue

            def added(part: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
                low = products.linear(part[:, :width].contiguous(), a)
                return products.add_linear(part[:, width:].contiguous(), low, b)

            y[rows] = products.by_rows(added, torch.cat([x[rows], y[rows]], 1), self.rows)
        return y


class Layer(nn.Module):
    """One transformer block: `heads` query heads and `kv_heads` key heads of `head_dim`; `eps` of its norms."""

    def __init__(
        self,
        qkv: Projection,
        out: Projection,
        gate_up: Projection,
        down: Projection,
        norms: dict[str, Tensor],
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.eps = heads, kv_heads, head_dim, eps
        self.qkv, self.out, self.gate_up, self.down = qkv, out, gate_up, down
        self.norms = nn.ParameterDict(
            {name: nn.Parameter(weight, requires_grad=False) for name, weight in norms.items()}
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: LayerAttend, version: int, adapter: AdapterChoice = None
    ) -> Tensor:
        """x [n, hidden] -> [n, hidden]; `cos` and `sin` [n, 1, head_dim] rotate queries and keys; `version` and
        `adapter` as for `Projection`."""
        rotated = self.heads + self.kv_heads
        normed = F.rms_norm(x, (x.shape[-1],), self.norms["attention"], self.eps)
        qkv = self.qkv(normed, version, adapter).view(len(x), rotated + self.kv_heads, self.head_dim)
        rotary, v = qkv[:, :rotated], qkv[:, rotated:]
        if "q" in self.norms:
            q = F.rms_norm(rotary[:, : self.heads], (self.head_dim,), self.norms["q"], self.eps)
            k = F.rms_norm(rotary[:, self.heads :], (self.head_dim,), self.norms["k"], self.eps)
            rotary = torch.cat([q, k], 1)
        rotary = _rotate(rotary, cos, sin)
        attended = attend(rotary[:, : self.heads], rotary[:, self.heads :], v)
        x = x + self.out(attended, version, adapter)
        normed = F.rms_norm(x, (x.shape[-1],), self.norms["mlp"], self.eps)
        gate, up = self.gate_up(normed, version, adapter).chunk(2, -1)
        return x + self.down(F.silu(gate) * up, version, adapter)


class LMHead(nn.Module):
    """The output layer: maps hidden states to logits. `weight` [vocab, hidden] may be the embedding's."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.packed = PackedWeight()
        self.rows = AT_LEAST_TWO

    def forget_copies(self) -> None:
        """As for `Projection`."""
        self.packed.forget()

    @overload
    def forward(self, hidden: Tensor, version: int) -> Tensor: ...

    @overload
    def forward(self, hidden: Tensor, version: int, compute: Callable[[Tensor, Tensor, Rows], T]) -> T: ...

    def forward(
        self, hidden: Tensor, version: int, compute: Callable[[Tensor, Tensor, Rows], T] | None = None
    ) -> Tensor | T:
        """hidden [n, hidden] -> logits [n, vocab] in the model's dtype.

        With `compute`, returns `compute(hidden, weight, rows)` instead: for results that need not hold the logits of
        all rows at once. `version` counts changes of a trainable weight.
        """
        if compute is not None:
            return compute(hidden, self.weight, self.rows)
        version = version if self.weight.requires_grad else 0
        return products.by_rows(lambda part: self.packed.linear(part, self.weight, None, version), hidden, self.rows)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of Hugging Face's Llama (Su et al. 2021)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
