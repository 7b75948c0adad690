"""Embedders convert texts to vectors of unit length. The default one needs no model and no network."""

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
"""Weight of a whole word, relative to one of its trigrams."""


class Embedder(Protocol):
    """An embedder with vectors of a fixed `size`. Its `name` is stored with the vectors, because vectors of different
    embedders cannot be compared."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of `texts`: float32 (N, size), each of length 1. Called in a thread."""
        ...


class HashingEmbedder:
    """Hashes words and their character trigrams into `size` signed counts (feature hashing, Weinberger et al. 2009).

    Texts with similar spelling have similar vectors; meaning is ignored. The same on every machine and in every run."""

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
    """Return an embedder: `hashing`, `minilm`, `none`, or your own as `package.module:attribute` (an object, or a
    function that returns one). Raises `ConfigError` for anything else, and for `minilm` without its package."""
    if name == "none":
        return None
    if name == "hashing":
        return HashingEmbedder()
    if name == "minilm":
        from midstream.memory.minilm import minilm

        return minilm()
    module, colon, attribute = name.partition(":")
    try:
        if not colon:
            raise ValueError("it has no colon")
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"no embedder '{name}': {error}", "use hashing, minilm, none, or package.module:attribute of your own"
        ) from None
    embedder = target if hasattr(target, "embed") and not isinstance(target, type) else target()
    if not callable(getattr(embedder, "embed", None)):
        raise ConfigError(f"'{name}' is no embedder", "it needs name, size and embed(texts)")
    return embedder
