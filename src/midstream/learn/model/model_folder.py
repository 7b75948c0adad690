"""Writes a model as a folder that transformers can load: weights, config, generation config and tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from midstream.learn.model.policy_model import PolicyModel

BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files copied with a model when present, beside its config and weights."""


def write_model(folder: Path, decoder: PolicyModel, weights: Mapping[str, Tensor]) -> None:
    """Write `weights`, keyed by Hugging Face's names, into `folder`, with the config of `decoder` and the other files
    of its source folder."""
    source = Path(decoder.source)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(decoder, weights), indent=2) + "\n", encoding="utf-8")
    copy_beside(source, folder)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy the tokenizer and generation config of the model in `source`."""
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _config(decoder: PolicyModel, weights: Mapping[str, Tensor]) -> dict[str, object]:
    written = Path(decoder.source) / "config.json"
    # Keep the file's spelling: other readers may know only older keys.
    config = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else dict(decoder.config)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    return {**config, **dict.fromkeys(names, dtype), "tie_word_embeddings": decoder.tied}
