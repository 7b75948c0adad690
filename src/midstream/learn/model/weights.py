"""Trainable weights of a decoder: its adapters, or all weights.

Adapters are fp32 and cast where they are used. In full tuning of a bf16 model, the optimizer updates fp32 master
weights and the engine samples from rounded copies, so that updates below bf16 precision are not lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from midstream.core.errors import ModelError
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.layers import Projection
from midstream.engines.torch.lora import adapter_state, load_adapter, save_adapter
from midstream.learn.model.model_folder import write_model


class Weights:
    """Trainable weights with saving and loading. `tuning` is `lora` or `full`."""

    def __init__(self, decoder: Decoder, tuning: str) -> None:
        self.decoder, self.tuning = decoder, tuning
        if tuning == "lora":
            adapters = decoder.adapters()
            if not adapters:
                raise ModelError("the decoder has no adapters to train", "call add_adapters first")
            self._live = adapter_state_parameters(decoder)
            self._masters: dict[str, Tensor] | None = None
        else:
            for parameter in decoder.parameters():
                parameter.requires_grad_(True)
            self._live = dict(decoder.named_parameters())
            needs_masters = decoder.dtype != torch.float32
            self._masters = (
                {n: p.detach().float().clone().requires_grad_(True) for n, p in self._live.items()}
                if needs_masters
                else None
            )

    def parameters(self) -> list[Tensor]:
        """Return the optimizer's parameters."""
        return list((self._masters or self._live).values())

    def names(self) -> list[str]:
        """Return parameter names in the order of `parameters`."""
        return list(self._live)

    def gradients(self) -> dict[str, Tensor]:
        """Return existing gradients of the optimizer's parameters by name."""
        return {name: p.grad for name, p in (self._masters or self._live).items() if p.grad is not None}

    def zero_grad(self) -> None:
        for parameter in (*self._live.values(), *(self._masters or {}).values()):
            parameter.grad = None

    def accumulate(self) -> None:
        """Add gradients to the fp32 masters after each backward pass, so that the sum does not depend on the number of
        passes."""
        for name, master in (self._masters or {}).items():
            live = self._live[name]
            if live.grad is not None:
                master.grad = live.grad.float() if master.grad is None else master.grad.add_(live.grad)
                live.grad = None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply one step of `optimizer`."""
        optimizer.step()
        for name, master in (self._masters or {}).items():
            self._live[name].copy_(master)

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of the live weights by name."""
        return {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Restore weights returned by `snapshot`, and increment the policy version."""
        for name, parameter in self._live.items():
            parameter.copy_(values[name])
            if self._masters is not None:
                self._masters[name].copy_(values[name])
        self.decoder.version += 1

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights that `load` would set, in the format of `snapshot`, without changing anything."""
        saved, version = self.snapshot(), self.decoder.version
        try:
            self.load(folder)
            return self.snapshot()
        finally:
            self.restore(saved)
            self.decoder.version = version

    @contextmanager
    def swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Temporarily replace the weights, for a reference policy of the same shape."""
        with torch.no_grad():
            saved = {name: p.detach().clone() for name, p in self._live.items()}
            for name, parameter in self._live.items():
                parameter.copy_(values[name])
        version, self.decoder.version = self.decoder.version, -1 - self.decoder.version
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._live.items():
                    parameter.copy_(saved[name])
            self.decoder.version = version

    def save(self, folder: Path, base: str) -> None:
        """Save adapters in peft's format. After full tuning, save a model folder that transformers can load (fp32
        masters where they exist)."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.tuning == "lora":
            decoder = self.decoder
            save_adapter(decoder.adapters(), folder, rank=decoder.adapter_rank, alpha=decoder.adapter_alpha, base=base)
            return
        values = {name: value.detach() for name, value in (self._masters or self._live).items()}
        write_model(folder, self.decoder, unfused(self.decoder, values))

    def load(self, folder: Path) -> None:
        """Load weights written by `save`."""
        if self.tuning == "lora":
            load_adapter(self.decoder.adapters(), folder)
        else:
            path = folder / "model.safetensors"
            if not path.is_file():
                raise ModelError(
                    f"no weights at '{folder}'", "give a checkpoint folder of a run with policy.tuning=full"
                )
            self.restore(fused(self.decoder, load_file(path)))
        self.decoder.version += 1


def adapter_state_parameters(decoder: Decoder) -> dict[str, Tensor]:
    """Return the adapters' parameters (not copies) under peft's names."""
    names: dict[str, Tensor] = {}
    for adapter in decoder.adapters().values():
        for name, a, b in zip(adapter.names, adapter.down, adapter.up, strict=True):
            names[f"{name}.lora_A"], names[f"{name}.lora_B"] = a, b
    assert len(names) == len(adapter_state(decoder.adapters()))
    return names


_WHOLE = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_NORMS = {
    "attention": "input_layernorm",
    "mlp": "post_attention_layernorm",
    "q": "self_attn.q_norm",
    "k": "self_attn.k_norm",
}


def _hf_tensors(decoder: Decoder, name: str) -> list[tuple[str, int]]:
    """Return Hugging Face's names and row counts for our parameter `name`."""
    if name in _WHOLE:
        return [(_WHOLE[name], -1)]
    path, _, leaf = name.rpartition(".")
    module = decoder.get_submodule(path)
    if isinstance(module, Projection):
        return [(f"{part}.{leaf}", size) for part, size in zip(module.names, module.sizes, strict=True)]
    layer = path.split(".")[1]
    return [(f"model.layers.{layer}.{_NORMS[leaf]}.weight", -1)]


def unfused(decoder: Decoder, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our parameters under Hugging Face's names."""
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        parts = _hf_tensors(decoder, name)
        pieces = value.split([size for _, size in parts]) if len(parts) > 1 else [value]
        for (part, _), piece in zip(parts, pieces, strict=True):
            result[part] = piece.cpu().contiguous().clone()
    return result


def fused(decoder: Decoder, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert `unfused`."""
    whole: dict[str, Tensor] = {}
    for name, parameter in decoder.named_parameters():
        try:
            parts = [values[part] for part, _ in _hf_tensors(decoder, name)]
        except KeyError as error:
            raise ModelError(f"the checkpoint has no {error}", "it was saved from another architecture") from None
        rows = sum(len(part) for part in parts)
        if any(part.shape[1:] != parameter.shape[1:] for part in parts) or rows != len(parameter):
            raise ModelError(
                f"the checkpoint's {name} is {[list(part.shape) for part in parts]}, the model's "
                f"{list(parameter.shape)}",
                "it was saved from a model of another size",
            )
        whole[name] = torch.cat(parts)
    return whole
