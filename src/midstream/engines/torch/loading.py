"""Loads decoders by device and dtype settings, and checkpoint weights into a decoder that is already sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import torch

from midstream.core.errors import ConfigError, ModelError
from midstream.engines.publication import POLICY
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.engines.torch.lora import read_adapter_shape
from midstream.engines.torch.numerics import Numerics, fastest_dtype


class Placement(Protocol):
    """Settings for loading a decoder: `policy.device` and `policy.dtype`."""

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...


def choose_device(config: Placement) -> torch.device:
    """Return the device of `policy.device`; raises `ConfigError` if it is not available."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"policy.device '{config.device}' cannot be used: {error}", "use cpu, cuda or auto") from None
    return device


def choose_dtype(config: Placement, device: torch.device, folder: Path) -> torch.dtype:
    """Return the dtype of `policy.dtype` for the model in `folder`; `auto` is measured on a CPU."""
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inner = (int(sizes.get(name) or 0) for name in ("hidden_size", "intermediate_size"))
    return fastest_dtype(hidden, 2 * inner)


def load_policy(config: Placement, folder: Path, recorded: Numerics | None = None) -> Decoder:
    """Load the model in `folder` with the device and dtype of `config`; `auto` keeps the dtype of `recorded`."""
    device = choose_device(config)
    if config.dtype == "auto" and recorded is not None:
        return load_decoder(folder, getattr(torch, recorded.dtype), device)
    return load_decoder(folder, choose_dtype(config, device, folder), device)


def load_weights(decoder: Decoder, folder: Path, adapter: str = POLICY) -> None:
    """Load the weights in a folder: an adapter in peft's format, else the whole model. An adapter is added to those of
    the decoder, or takes the place of the one of its name. Raises `ModelError`, and keeps the weights, if they do not
    fit."""
    if (folder / "adapter_model.safetensors").is_file():
        _load_adapter(decoder, folder, adapter)
    else:
        _load_model(decoder, folder)
    decoder.forget_copies()


def _load_adapter(decoder: Decoder, folder: Path, name: str) -> None:
    new = name not in decoder.adapter_names
    if new:
        shape = read_adapter_shape(folder)
        decoder.add_adapters(shape.rank, shape.alpha, 0, shape.targets, shape.layers, name)
    try:
        decoder.load_adapter(folder, name)
    except ModelError:
        if new:
            decoder.remove_adapter(name)
        raise


def _load_model(decoder: Decoder, folder: Path) -> None:
    loaded = dict(load_decoder(folder, decoder.dtype, decoder.device).named_parameters())
    own = dict(decoder.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in loaded.items()}:
        raise ModelError(f"the model in '{folder}' does not fit '{decoder.source}'", "use checkpoints of this model")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(loaded[name])
