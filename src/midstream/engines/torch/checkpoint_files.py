"""Checkpoint folders: finds the weight files, and checks that the torch engine can read them exactly.

transformers provides the model's structure (tensor names, shapes, tied embeddings, config defaults) by building it
without memory; the checkpoint must match it exactly. Quantised weights are refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from midstream.core.errors import ModelError

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
"""Rotary position types whose precomputed tables equal those of transformers at every position."""
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_FLOATS = ("F64", "F32", "F16", "BF16")
_FETCH = "the checkpoint is incomplete or damaged; fetch it again"
_ELSEWHERE = "use another model, or serve this one with vLLM"
_UNQUANTISE = "use the original checkpoint in bfloat16 or float32, or serve this one with vLLM"
_QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_PACKED = (
    "qweight",
    "qzeros",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "scales",
    "scb",
    "absmax",
    "quant_map",
    "weight_blocks",
    "weight_scales",
)
"""Suffixes of tensor names in quantised checkpoints."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of the model in `folder`, with all defaults of transformers.

    Raises `ModelError` if the decoder cannot run this model exactly: unsupported architecture, custom Python code,
    quantised weights, sliding windows, other activations, or unsupported position types."""
    written = _read_json(folder / "config.json")
    architecture = (written.get("architectures") or ["?"])[0]
    auto_map = written.get("auto_map") or {}
    if own := auto_map.get("AutoModelForCausalLM") or (
        architecture not in SUPPORTED and next(iter(auto_map.values()), "")
    ):
        raise ModelError(
            f"'{folder}' contains its own Python code ({own}), which is never run",
            f"supported: {', '.join(SUPPORTED)} without an auto_map; or serve it with vLLM",
        )
    if architecture not in SUPPORTED:
        raise ModelError(
            f"'{folder}' is a {architecture}, which the torch engine does not run",
            f"supported: {', '.join(SUPPORTED)}; other models can be a role's engine through an OpenAI-compatible URL",
        )
    _refuse_quantised(folder, written)
    config = _resolve(folder)
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    slides = architecture == "MistralForCausalLM" or "sliding_attention" in (config.get("layer_types") or ())
    if slides and window and int(window) < context:
        raise ModelError(
            f"'{folder}' uses sliding-window attention ({window} of {context} tokens), which the torch engine does not "
            "run",
            _ELSEWHERE,
        )
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ModelError(
            f"'{folder}' uses the activation {activation}, which the torch engine does not run", _ELSEWHERE
        )
    rope = config["rope_parameters"]
    if (kind := rope.get("rope_type", "default")) not in ROPE_TYPES:
        raise ModelError(
            f"'{folder}' uses rotary positions of type '{kind}', which the torch engine does not run",
            f"it runs: {', '.join(ROPE_TYPES)}",
        )
    if (share := rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelError(
            f"'{folder}' rotates {share:g} of each head only, which the torch engine does not run", _ELSEWHERE
        )
    return config


def weight_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor: `model.safetensors`, or the files listed in `model.safetensors.index.json`. Other
    files are ignored. Raises `ModelError` if a listed file is missing or damaged."""
    if (folder / WHOLE).is_file():
        return dict.fromkeys(_names(folder / WHOLE), folder / WHOLE)
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"'{folder}' has neither {WHOLE} nor {INDEX}", "convert the checkpoint with save_pretrained first"
        )
    listed = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"'{folder / INDEX}' has no weight_map", _FETCH)
    found: dict[str, Path] = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name:
            raise ModelError(f"'{folder / INDEX}' names '{name}', which is not a file of that folder", _FETCH)
        if not (folder / name).is_file():
            raise ModelError(f"'{folder}' lacks the shard '{name}', which {INDEX} lists", _FETCH)
        found |= {tensor: folder / name for tensor in _names(folder / name)}
    if absent := sorted(tensor for tensor, name in listed.items() if found.get(tensor, Path()).name != name):
        raise ModelError(f"'{folder}': '{absent[0]}' is not in '{listed[absent[0]]}' as {INDEX} says", _FETCH)
    return found


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of most of the weights in `folder`."""
    files = weight_files(folder)
    with _open(next(iter(files.values()))) as handle:
        name = max(handle.keys(), key=lambda name: math.prod(handle.get_slice(name).get_shape()))
        return handle.get_tensor(name).dtype


def read_weights(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return every tensor of the model by its Hugging Face name, as `dtype` on `device`. Tied embeddings have no
    `lm_head.weight`.

    Raises `ModelError` for tensors that are missing, unexpected, not floats, or differ in shape from the config's."""
    files = weight_files(folder)
    expected = _expected_shapes(config)
    tied = bool(config.get("tie_word_embeddings"))
    # Position tables that old versions of transformers saved with the weights.
    names = {name for name in files if not name.endswith("rotary_emb.inv_freq")}
    missing = expected.keys() - names
    if tied and len(missing & {EMBED, HEAD}) == 1:
        missing -= {EMBED, HEAD}
    unexpected = sorted(names - expected.keys())
    if packed := [name for name in unexpected if name.rsplit(".", 1)[-1].lower() in _PACKED or ".quant_state" in name]:
        raise ModelError(f"'{folder}' holds quantised weights ('{packed[0]}')", _UNQUANTISE)
    for what, which in (("lacks", sorted(missing)), ("holds unexpected tensors:", unexpected)):
        if which:
            more = f" and {len(which) - 1} more" if len(which) > 1 else ""
            raise ModelError(
                f"'{folder}' {what} '{which[0]}'{more}; its config.json describes a {config['architectures'][0]} of "
                f"{config['num_hidden_layers']} layers",
                "config.json and weights are of different models, or the checkpoint is incomplete; fetch it again",
            )
    weights: dict[str, Tensor] = {}
    for file in sorted({files[name] for name in names}):
        with _open(file, device) as handle:
            for name in sorted(name for name in names if files[name] == file):
                part = handle.get_slice(name)
                if part.get_dtype() not in _FLOATS:
                    raise ModelError(
                        f"'{folder}': '{name}' is stored as {part.get_dtype()}: quantised weights, not numbers to "
                        "compute with",
                        _UNQUANTISE,
                    )
                if (shape := list(part.get_shape())) != expected[name]:
                    raise ModelError(
                        f"'{folder}': '{name}' is {shape}, but its config.json asks for {expected[name]}",
                        "config.json and weights are of different models; fetch both again",
                    )
                weights[name] = handle.get_tensor(name).to(dtype)
    if tied:
        _tie(weights)
    return weights


def _tie(weights: dict[str, Tensor]) -> None:
    """Tie embeddings as transformers does: to the one that exists, and not at all if they differ."""
    if EMBED not in weights:
        weights[EMBED] = weights.pop(HEAD)
    elif HEAD in weights and torch.equal(weights[EMBED], weights[HEAD]):
        del weights[HEAD]


def _resolve(folder: Path) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the config of '{folder}' is not valid: {reason}", "fetch its config.json again") from None
    resolved = config.to_dict()
    # Only some classes keep it.
    resolved.setdefault("tie_word_embeddings", bool(getattr(config, "tie_word_embeddings", False)))
    return resolved


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shape of each tensor of the model that `config` (from `read_config`) describes."""
    import transformers

    architecture: Any = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = architecture(architecture.config_class.from_dict(dict(config)))
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    described: Any = config.get("quantization_config") or config.get("compression_config")
    if described:
        method = described.get("quant_method") if isinstance(described, dict) else None
        bits = described.get("bits") if isinstance(described, dict) else None
        if isinstance(described, dict) and not method:
            methods = {"load_in_4bit": "bitsandbytes, 4-bit", "load_in_8bit": "bitsandbytes, 8-bit"}
            method = next((name for key, name in methods.items() if described.get(key)), None)
        name = f"{method or 'method not named'}{f', {bits}-bit' if bits else ''}"
    elif found := next((file for file in _QUANTISED_FILES if (folder / file).is_file()), None):
        name = f"it has a {found}"
    else:
        return
    raise ModelError(f"'{folder}' is quantised ({name}), which the torch engine does not run", _UNQUANTISE)


def _names(file: Path) -> list[str]:
    with _open(file) as handle:
        return list(handle.keys())


def _open(file: Path, device: torch.device | str = "cpu") -> Any:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{file}' is damaged: {' '.join(str(error).split())}", _FETCH) from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{file.parent}' holds no readable {file.name}: {error}", "give a folder saved with save_pretrained"
        ) from None
    if not isinstance(data, dict):
        raise ModelError(f"'{file}' holds no object of settings", "give a folder saved with save_pretrained")
    return data
