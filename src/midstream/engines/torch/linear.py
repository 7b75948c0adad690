"""Matrix products for sampling, with weights packed into the processor's format where that is faster.

On CPU in bf16 oneDNN's packed kernels take half the time of the plain ones at the few rows of a decoding step, with
bit-identical results. Elsewhere, and wherever a gradient is needed, this is `torch.nn.functional.linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from midstream.engines.torch import products


class PackedWeight:
    """A packed copy of a weight [out, in], created on first use and again whenever `version` changes."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._packed: Tensor | None = None
        self.allowed = True

    def used_for(self, weight: Tensor) -> bool:
        """Whether sampling uses a packed copy of `weight`."""
        return self.allowed and _packs(weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, version: int) -> Tensor:
        """x [n, in] -> [n, out]; `version` counts changes of `weight` and is constant while it is frozen."""
        if torch.is_grad_enabled() or not self.used_for(weight):
            return products.linear(x, weight, bias)
        self.pack(weight, version)
        assert self._packed is not None
        return products.packed_linear(x, self._packed, bias)

    def forget(self) -> None:
        """Drop the packed copy; the next use creates another."""
        self._version = self._packed = None

    def pack(self, weight: Tensor, version: int) -> None:
        """Create the packed copy of `weight` now, if it will be used."""
        if self._version != version and _packs(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
            self._version = version


def _packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
