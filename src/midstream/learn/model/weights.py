"""Trainable weights of a model: its adapters, or all weights.

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
from midstream.learn.model.model_folder import write_model
from midstream.learn.model.policy_model import PolicyModel

ADAPTERS = "adapters"
"""Folder of a checkpoint with a folder for each of several adapters. A single adapter is in the checkpoint itself."""


class Weights:
    """Trainable weights with saving and loading. `tuning` is `lora` or `full`."""

    def __init__(self, decoder: PolicyModel, tuning: str) -> None:
        self.decoder, self.tuning = decoder, tuning
        self._masters: dict[str, Tensor] | None = None
        if tuning == "lora":
            if not decoder.adapter_names:
                raise ModelError("the decoder has no adapters to train", "call add_adapters first")
            self._live = {
                qualified_name(decoder, adapter, name): parameter
                for adapter in decoder.adapter_names
                for name, parameter in decoder.adapter_parameters(adapter).items()
            }
            return
        for parameter in decoder.parameters():
            parameter.requires_grad_(True)
        self._live: dict[str, Tensor] = dict(decoder.named_parameters())
        if decoder.dtype != torch.float32:
            self._masters = {n: p.detach().float().clone().requires_grad_(True) for n, p in self._live.items()}

    def parameters(self) -> list[Tensor]:
        """Return the optimizer's parameters."""
        return list((self._masters or self._live).values())

    def names(self) -> list[str]:
        """Return parameter names in the order of `parameters`. With several adapters they begin with the adapter's."""
        return list(self._live)

    def by_adapter(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's parameters by adapter and name; after full tuning there is one group, called ``."""
        every = self._masters or self._live
        if self.tuning == "full":
            return {"": every}
        return {
            adapter: {
                name: every[name]
                for own in self.decoder.adapter_parameters(adapter)
                for name in [qualified_name(self.decoder, adapter, own)]
            }
            for adapter in self.decoder.adapter_names
        }

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
        """Save adapters in peft's format, see `saved_folders`. After full tuning, save a model folder that transformers
        can load (fp32 masters where they exist)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, place in saved_folders(folder, self.decoder.adapter_names).items():
            self.save_adapter(place, base, name)
        if self.tuning == "full":
            values = {name: value.detach() for name, value in (self._masters or self._live).items()}
            write_model(folder, self.decoder, self.decoder.to_hf(values))

    def save_adapter(self, folder: Path, base: str, name: str) -> None:
        """Save one adapter into `folder` itself; after full tuning, the model."""
        if self.tuning == "full":
            return self.save(folder, base)
        folder.mkdir(parents=True, exist_ok=True)
        self.decoder.save_adapter(folder, base, name)

    def load(self, folder: Path) -> None:
        """Load weights written by `save`."""
        if self.tuning == "full":
            path = folder / "model.safetensors"
            if not path.is_file():
                raise ModelError(
                    f"no weights at '{folder}'", "give a checkpoint folder of a run with policy.tuning=full"
                )
            self.restore(self.decoder.from_hf(load_file(path)))
        for name, place in saved_folders(folder, self.decoder.adapter_names).items():
            self.decoder.load_adapter(place, name)
        self.decoder.version += 1


def saved_folders(checkpoint: Path, adapters: tuple[str, ...]) -> dict[str, Path]:
    """Return the folder of each of `adapters` in a checkpoint: the checkpoint itself for one, `adapters/NAME` for each
    of several."""
    if len(adapters) == 1:
        return {adapters[0]: checkpoint}
    return {name: checkpoint / ADAPTERS / name for name in adapters}


def saved_adapters(checkpoint: Path, single: str) -> dict[str, Path]:
    """Return the folders of the adapters in a checkpoint by name; `single` names the adapter of one that has one."""
    several = tuple(sorted(path.name for path in (checkpoint / ADAPTERS).glob("*") if path.is_dir()))
    return saved_folders(checkpoint, several or (single,))


def qualified_name(decoder: PolicyModel, adapter: str, name: str) -> str:
    """Return the name of an adapter's parameter: as in peft, after the adapter's name if there are several."""
    return name if len(decoder.adapter_names) == 1 else f"{adapter}/{name}"
