"""Low-rank adapters (LoRA, Hu et al. 2021): `y = x Wᵀ + (alpha / rank) (x Aᵀ) Bᵀ`, with A initialised Kaiming-uniform
and B zero.

Adapters of projections that share an input are concatenated, so that one product serves them all. A model may hold
several sets of adapters, by name. On disk each set uses peft's format: `adapter_config.json` and
`adapter_model.safetensors`, which peft and vLLM load directly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from midstream.core.errors import ModelError

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The adapters of a batch whose rows use different ones: row indices [k] by name. Other rows use none."""

    rows: Mapping[str, Tensor]


AdapterChoice = str | AdapterRows | None
"""The adapter of all rows by name (empty: the model's first), or of each row, or None for the base model."""


def choose_rows(names: Sequence[str | None], device: torch.device) -> AdapterChoice:
    """Return the choice for rows with the adapters `names`."""
    rows: dict[str | None, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    if len(rows) == 1:
        return next(iter(rows))
    return AdapterRows({name: torch.tensor(own, device=device) for name, own in rows.items() if name is not None})


class Adapter(nn.Module):
    """The adapters of one fused projection: each part has its own A [rank, in] and B [out, rank], in fp32."""

    def __init__(self, names: Sequence[str], sizes: Sequence[int], n_in: int, rank: int, scale: float) -> None:
        super().__init__()
        self.names, self.scale = list(names), scale
        self.down = nn.ParameterList(nn.Parameter(torch.empty(rank, n_in)) for _ in sizes)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(size, rank)) for size in sizes)

    def reset(self, generator: torch.Generator) -> None:
        """peft's initialisation: A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0."""
        for a, b in zip(self.down, self.up, strict=True):
            bound = 1 / math.sqrt(a.shape[1])
            with torch.no_grad():
                values = torch.rand(a.shape, generator=generator) * 2 * bound - bound
                a.copy_(values.to(a.device))
                b.zero_()

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return `(A, B)` as applied: A [parts * rank, in]; B [parts * rank, out], block-diagonal, scaled."""
        a = torch.cat(list(self.down)) if len(self.down) > 1 else self.down[0]
        blocks = [b.t() * self.scale for b in self.up]
        b = torch.block_diag(*blocks) if len(blocks) > 1 else blocks[0]
        return a.to(dtype), b.to(dtype)


def adapter_state(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Return every A and B under its name in peft."""
    state: dict[str, Tensor] = {}
    for adapter in adapters.values():
        for name, a, b in zip(adapter.names, adapter.down, adapter.up, strict=True):
            state[f"{PREFIX}{name}.lora_A.weight"] = a.detach()
            state[f"{PREFIX}{name}.lora_B.weight"] = b.detach()
    return state


def save_adapter(adapters: Mapping[str, Adapter], folder: Path, *, rank: int, alpha: float, base: str) -> None:
    """Write peft's two files into `folder`."""
    from peft import LoraConfig

    names = [name for adapter in adapters.values() for name in adapter.names]
    targets = sorted({name.rsplit(".", 1)[1] for name in names})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  peft accepts any number, but declares int
        target_modules=targets,
        layers_to_transform=sorted({int(name.split(".")[2]) for name in names}),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).to_dict()
    config["target_modules"] = targets
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.cpu().contiguous() for name, tensor in adapter_state(adapters).items()}
    save_file(state, folder / "adapter_model.safetensors")
    text = json.dumps(
        {key: value for key, value in config.items() if not isinstance(value, set)}, indent=2, default=str
    )
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Arguments of `Decoder.add_adapters` for a saved adapter; `layers` is the number of last layers it covers."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    layers: int | None


def read_adapter_shape(folder: Path) -> AdapterShape:
    """Read `adapter_config.json`; raises `ModelError` if it is missing or unsupported."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        layers = config.get("layers_to_transform")
        return AdapterShape(
            int(config["r"]),
            float(config["lora_alpha"]),
            tuple(config["target_modules"]),
            None if layers is None else len(layers),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"'{path}' cannot be read: {type(error).__name__}: {error}", "use an adapter that Midstream saved"
        ) from None


def load_adapter(adapters: Mapping[str, Adapter], folder: Path) -> None:
    """Read peft's format into `adapters`; raises `ModelError` if rank, scale, targets or shapes differ."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(f"no adapter at '{folder}'", "give a checkpoint folder that holds adapter_model.safetensors")
    saved, own = load_file(path), adapter_state(adapters)
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    wrong = [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
    if missing or extra or wrong:
        what = [f"{len(missing)} missing", f"{len(extra)} unexpected", f"{len(wrong)} of another shape"]
        example = (missing or extra or sorted(wrong))[0]
        raise ModelError(
            f"the adapter at '{folder}' does not fit this model ({', '.join(what)}; first: {example})",
            "use the model, rank and targets it was trained with (see adapter_config.json there)",
        )
    scale, ours = _saved_scale(folder), {adapter.scale for adapter in adapters.values()}
    if scale is not None and any(not math.isclose(scale, one) for one in ours):
        raise ModelError(
            f"the adapter at '{folder}' does not fit this model (scaled by {scale:g}, here by {min(ours):g})",
            "use the policy.lora.alpha it was trained with (see adapter_config.json there)",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _saved_scale(folder: Path) -> float | None:
    """Return the factor of B A from `adapter_config.json`; None if that file is missing."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    rank, alpha = float(config["r"]), float(config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
