"""Names of a decoder's parameters: ours, where projections that share an input are one matrix, and Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from midstream.core.errors import ModelError
from midstream.engines.torch.layers import Projection

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


def to_hf(projections: Mapping[str, Projection], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our parameters under Hugging Face's names. `projections` are the decoder's by path."""
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        parts = _parts(projections, name)
        pieces = value.split([size for _, size in parts]) if len(parts) > 1 else [value]
        for (part, _), piece in zip(parts, pieces, strict=True):
            result[part] = piece.cpu().contiguous().clone()
    return result


def from_hf(
    projections: Mapping[str, Projection], own: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Invert `to_hf`. `own` are the decoder's parameters. Raises `ModelError` for tensors of another model."""
    whole: dict[str, Tensor] = {}
    for name, parameter in own.items():
        try:
            parts = [values[part] for part, _ in _parts(projections, name)]
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


def _parts(projections: Mapping[str, Projection], name: str) -> list[tuple[str, int]]:
    """Return Hugging Face's names and row counts for our parameter `name`."""
    if name in _WHOLE:
        return [(_WHOLE[name], -1)]
    path, _, leaf = name.rpartition(".")
    if path in projections:
        projection = projections[path]
        return [(f"{part}.{leaf}", size) for part, size in zip(projection.names, projection.sizes, strict=True)]
    layer = path.split(".")[1]
    return [(f"model.layers.{layer}.{_NORMS[leaf]}.weight", -1)]
