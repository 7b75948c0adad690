"""Embedders: turn texts into vectors of unit length. The default one needs no model and no network."""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from midstream.core.errors import ConfigError

_WORD = re.compile(r"[^\W_]+")
WORD_WEIGHT = 2.0
"""Weight of a whole word against one of its trigrams."""


class Embedder(Protocol):
    """Anything with a fixed `size`. `name` is stored with the vectors: those of different embedders do not compare."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32 (N, size), of length 1. Called in a thread."""
        ...


class HashingEmbedder:
    """Hashes words and their character trigrams into `size` signed counts (feature hashing, Weinberger et al. 2009).

    Similar spelling is similar; meaning is not known. Deterministic over machines and runs."""

    def __init__(self, size: int = 256) -> None:
        self._size = size

    @property
    def name(self) -> str:
        return f"hashing-{self._size}"

    @property
    def size(self) -> int:
        return self._size

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self._size), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()):
                padded = f" {word} "
                self._add(vectors[row], padded, WORD_WEIGHT)
                for start in range(len(padded) - 2):
                    self._add(vectors[row], padded[start : start + 3], 1.0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, 1e-9)

    def _add(self, vector: np.ndarray, feature: str, weight: float) -> None:
        hashed = zlib.crc32(feature.encode("utf-8", "replace"))
        vector[hashed % self._size] += weight if hashed & 0x80000000 else -weight


def load_embedder(name: str) -> Embedder | None:
    """`hashing`, `none`, or an embedder of yours as `package.module:attribute` (an object, or a function that makes
    one). Raises `ConfigError` for anything else."""
    if name == "none":
        return None
    if name == "hashing":
        return HashingEmbedder()
    module, colon, attribute = name.partition(":")
    try:
        if not colon:
            raise ValueError("it has no colon")
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"no embedder '{name}': {error}", "use hashing, none, or package.module:attribute of your own"
        ) from None
    made = found if hasattr(found, "embed") and not isinstance(found, type) else found()
    if not callable(getattr(made, "embed", None)):
        raise ConfigError(f"'{name}' is no embedder", "it needs name, size and embed(texts)")
    return made
