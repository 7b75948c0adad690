"""Checkpoint folders load like in transformers, or are refused with a one-line reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engines.test_decoder import IDS, logits_of, save_hugging_face

from midstream.core.errors import ModelError
from midstream.engines.chat import load_tokenizer
from midstream.engines.torch.decoder import load_decoder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.layers.1.input_layernorm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_hugging_face("llama", tmp_path)
    return tmp_path


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path) -> dict[str, str]:
    """Spread the weights over two files with an index; returns its weight map."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    placed = {name: file for file, held in files.items() for name in held}
    for file, held in files.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / WEIGHTS).unlink()
    return placed


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_decoder(folder, torch.float32)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value.message


def transformers_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize(
    ("described", "named"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4-bit"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4-bit"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes, 8-bit"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_the_name_of_its_method(
    folder: Path, described: dict[str, Any], named: str
) -> None:
    configure(folder, quantization_config=described)
    assert f"is quantised ({named})" in refused(folder)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantiser_is_detected_by_its_own_file(folder: Path, file: str) -> None:
    (folder / file).write_text("{}")
    assert f"it has a {file}" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_numbers_are_never_loaded_as_weights(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda weights: weights.update({QUERY: weights[QUERY].to(dtype)}))
    assert "quantised weights" in refused(folder) and QUERY in refused(folder)


@pytest.mark.parametrize("end", ["weight_scale_inv", "qweight", "SCB", "weight.absmax", "weight.quant_state.bnb__nf4"])
def test_the_tensors_of_a_quantiser_are_recognised_without_its_config(folder: Path, end: str) -> None:
    rewrite(folder, lambda weights: weights.update({QUERY.replace("weight", end): torch.ones(2)}))
    assert "holds quantised weights" in refused(folder)


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop(NORM))
    assert f"lacks '{NORM}'" in refused(folder)
    rewrite(folder, lambda weights: weights.update({NORM: torch.ones(48), "model.layers.2.more": torch.ones(1)}))
    assert "holds unexpected tensors: 'model.layers.2.more'" in refused(folder)


def test_positions_saved_by_old_versions_are_not_unexpected(folder: Path) -> None:
    expected = transformers_logits(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda weights: weights.update({name: torch.ones(6)}))
    assert torch.allclose(logits_of(load_decoder(folder, torch.float32), IDS), expected, atol=1e-4)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({NORM: torch.ones(47)}))
    assert f"'{NORM}' is [47], but its config.json asks for [48]" in refused(folder)


def test_shards_are_read_by_the_index_and_a_stray_file_is_ignored(folder: Path) -> None:
    expected = transformers_logits(folder)
    shard(folder)
    save_file({EMBED: torch.zeros(96, 48)}, folder / "zz-optimizer.safetensors")
    assert torch.allclose(logits_of(load_decoder(folder, torch.float32), IDS), expected, atol=1e-4)


def test_a_missing_shard_is_an_error_that_names_it(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks the shard 'model-00002-of-00002.safetensors'" in refused(folder)


def test_an_index_that_is_wrong_is_refused(folder: Path) -> None:
    placed = shard(folder)
    swapped = {**placed, EMBED: next(file for file in placed.values() if file != placed[EMBED])}
    for weight_map, message in (
        (swapped, f"'{EMBED}' is not in"),
        ({**placed, EMBED: "../elsewhere.safetensors"}, "not a file of that folder"),
        ([], "has no weight_map"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert message in refused(folder)
    (folder / INDEX).write_text("{")
    assert f"no readable {INDEX}" in refused(folder)


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_damaged_weights_are_one_clear_line(folder: Path, damage: bytes | None) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert f"{WEIGHTS}' is damaged" in refused(folder)


def test_weights_with_unknown_names_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    assert f"neither {WEIGHTS} nor {INDEX}" in refused(folder)


@pytest.mark.parametrize("declared", [True, False, None])
@pytest.mark.parametrize("kept", [(EMBED, HEAD), (EMBED,), (HEAD,)])
@pytest.mark.parametrize("equal", [True, False])
def test_embeddings_are_tied_as_transformers_ties_them(
    folder: Path, declared: bool | None, kept: tuple[str, ...], equal: bool
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        if equal:
            weights[HEAD] = weights[EMBED].clone()
        for name in {EMBED, HEAD} - set(kept):
            del weights[name]

    rewrite(folder, change)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config if declared is None else {**config, "tie_word_embeddings": declared}))
    if not declared and len(kept) == 1:  # transformers fills missing weights with random numbers
        assert "lacks" in refused(folder)
        return
    ours = logits_of(load_decoder(folder, torch.float32), IDS)
    assert torch.allclose(ours, transformers_logits(folder), atol=1e-4)


def test_inexact_position_encodings_are_refused_by_name(folder: Path) -> None:
    factors = [1.0] * 6
    longrope = {
        "rope_theta": 500.0,
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 32,
    }
    configure(folder, rope_parameters=longrope)
    assert "rotary positions of type 'longrope'" in refused(folder)
    configure(folder, rope_parameters={"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5})
    assert "rotates 0.5 of each head" in refused(folder)


def test_position_settings_of_older_configs_are_read(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 3.0}}))
    ours = logits_of(load_decoder(folder, torch.float32), IDS)
    assert torch.allclose(ours, transformers_logits(folder), atol=1e-4)
    configure(folder, rope_scaling={"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6})
    assert "longrope" in refused(folder)


def test_a_window_of_the_context_length_is_ignored(tmp_path: Path) -> None:
    save_hugging_face("mistral", tmp_path)
    configure(tmp_path, sliding_window=64)
    assert "sliding-window attention (64 of 128 tokens)" in refused(tmp_path)
    configure(tmp_path, sliding_window=128)
    ours = logits_of(load_decoder(tmp_path, torch.float32), IDS)
    assert torch.allclose(ours, transformers_logits(tmp_path), atol=1e-4)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["sliding_window"]
    path.write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    assert "sliding-window attention (4096 of 8192 tokens)" in refused(tmp_path)  # the default of Mistral


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "OwnForCausalLM"])
def test_a_model_with_custom_code_is_refused_without_running_it(folder: Path, architecture: str) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit('ran')\n")
    configure(folder, architectures=[architecture], auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert "its own Python code (modeling_own.Own), which is never run" in refused(folder)


def test_a_tokenizer_with_custom_code_is_refused_without_running_it(tiny_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_path, tmp_path / "own")
    (tmp_path / "own" / "tokenization_own.py").write_text("raise SystemExit('ran')\n")
    path = tmp_path / "own" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    auto_map = {"AutoTokenizer": ["tokenization_own.Own", None]}
    path.write_text(json.dumps({**config, "tokenizer_class": "OwnTokenizer", "auto_map": auto_map}))
    with pytest.raises(ModelError, match=r"needs Python code from its checkpoint \(auto_map\), which is never run"):
        load_tokenizer(tmp_path / "own")


def test_a_config_refused_by_transformers_gives_one_line(folder: Path) -> None:
    configure(folder, num_hidden_layers="two")
    assert "the config of" in refused(folder) and "num_hidden_layers" in refused(folder)
