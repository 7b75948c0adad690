"""The decoder computes the same as Hugging Face's models, and peft loads the adapters it saves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from midstream.core.errors import ModelError
from midstream.core.sampling import SamplingParams
from midstream.engines.base import Request
from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.engines.torch.lora import load_adapter, save_adapter

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "bos_token_id": 1,
}
FAR = {"rope_theta": 500.0, "rope_type": "default"}
SCALED = {
    "rope_theta": 500.0,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama, tied, scaled positions": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": SCALED}),
    "llama, every bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama, a key head for each query head": ("LlamaConfig", {"num_key_value_heads": 4}),
    "mistral": ("MistralConfig", {"sliding_window": None, "tie_word_embeddings": False, "head_dim": 16}),
    "qwen2, biases on q, k and v": ("Qwen2Config", {"tie_word_embeddings": False, "rope_parameters": FAR}),
    "qwen2, tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "llama, linear positions": ("LlamaConfig", {"rope_parameters": {**FAR, "rope_type": "linear", "factor": 3.0}}),
    "llama, dynamic positions": ("LlamaConfig", {"rope_parameters": {**FAR, "rope_type": "dynamic", "factor": 3.0}}),
    "mistral, yarn positions": ("MistralConfig", {"sliding_window": None, "rope_parameters": YARN}),
    "qwen3, norms on q and k": ("Qwen3Config", {"tie_word_embeddings": True, "head_dim": 16}),
}


def save_hugging_face(kind: str, folder: Path) -> Any:
    """Save a small model of that kind with random weights to `folder`."""
    import transformers

    name, changes = KINDS[kind]
    config = getattr(transformers, name)(**{**SHAPE, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                # By default norms are one, biases zero and all other weights too small to matter.
                weight.copy_(torch.randn_like(weight) * (0.25 if weight.dim() == 2 else 0.5))
                if weight.dim() == 1:
                    weight.add_(1.0)
    model.save_pretrained(folder)
    return model


def logits_of(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    tree = merge_prefixes([ids])
    attend = TreeAttention(tree, decoder.heads // decoder.kv_heads, decoder.dtype)
    with torch.no_grad():
        return decoder.logits(decoder(tree.tokens, tree.positions, attend)[: tree.size])


IDS = [(7 * place * place + 3) % 94 for place in range(70)]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_text_equal_transformers(kind: str, tmp_path: Path, tiny_tokenizer) -> None:
    model = save_hugging_face(kind, tmp_path)
    decoder = load_decoder(tmp_path, torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    assert expected.std() > 1
    assert (logits_of(decoder, IDS) - expected).abs().max() < 1e-4

    engine = TorchEngine(decoder, tiny_tokenizer)
    request = Request(prompt_ids=tuple(IDS[:40]), sampling=SamplingParams(max_tokens=24, temperature=0), session="a")
    completion = asyncio.run(engine.generate(request))
    given = model.generate(
        torch.tensor([IDS[:40]]), attention_mask=torch.ones(1, 40), do_sample=False, max_new_tokens=24
    )
    assert list(completion.ids) == given[0, 40 : 40 + len(completion.ids)].tolist()
    assert len(completion.ids) > 1


def test_unsupported_models_are_refused(tmp_path: Path) -> None:
    save_hugging_face("llama", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for change, completion in (
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_hidden_layers": 3}, "lacks"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, "sliding-window"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=completion):
            load_decoder(tmp_path, torch.float32)


def stirred(decoder: Decoder, rank: int = 3, targets: tuple[str, ...] = (), last_layers: int | None = None) -> Decoder:
    """`decoder` with a non-zero adapter."""
    decoder.add_adapters(rank, 2.5 * rank, seed=5, targets=targets, last_layers=last_layers)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for adapter in decoder.adapters().values():
            for up in adapter.up:
                up.normal_(0, 0.3, generator=generator)
    return decoder


@pytest.mark.parametrize("last_layers", [None, 1])
@pytest.mark.parametrize("targets", [(), ("q_proj", "k_proj", "v_proj", "down_proj")])
def test_peft_reads_a_saved_adapter_and_gives_the_same_logits(targets, last_layers, tmp_path: Path) -> None:
    from peft import PeftModel

    model = save_hugging_face("qwen2, biases on q, k and v", tmp_path / "base")
    plain = logits_of(load_decoder(tmp_path / "base", torch.float32), IDS)
    decoder = stirred(load_decoder(tmp_path / "base", torch.float32), targets=targets, last_layers=last_layers)
    save_adapter(decoder.adapters(), tmp_path / "adapter", rank=3, alpha=7.5, base=str(tmp_path / "base"))
    adapted: Any = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits[0]
    ours = logits_of(decoder, IDS)
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 0.5


def test_a_saved_adapter_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    save_hugging_face("llama", tmp_path / "base")
    decoder = stirred(load_decoder(tmp_path / "base", torch.float32))
    save_adapter(decoder.adapters(), tmp_path / "adapter", rank=3, alpha=7.5, base="base")
    other = load_decoder(tmp_path / "base", torch.float32)
    other.add_adapters(3, 7.5, seed=99)
    assert not torch.equal(logits_of(other, IDS), logits_of(decoder, IDS))
    load_adapter(other.adapters(), tmp_path / "adapter")
    other.version += 1
    assert torch.equal(logits_of(other, IDS), logits_of(decoder, IDS))


@pytest.mark.parametrize(
    ("rank", "alpha", "targets"),
    [(4, 10.0, ()), (3, 7.5, ("o_proj",)), (3, 3.0, ())],
    ids=["rank", "targets", "scale"],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(rank, alpha, targets, tmp_path: Path) -> None:
    save_hugging_face("llama", tmp_path / "base")
    decoder = stirred(load_decoder(tmp_path / "base", torch.float32))
    save_adapter(decoder.adapters(), tmp_path / "adapter", rank=3, alpha=7.5, base="base")
    other = load_decoder(tmp_path / "base", torch.float32)
    other.add_adapters(rank, alpha, seed=99, targets=targets)
    before = logits_of(other, IDS)
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(other.adapters(), tmp_path / "adapter")
    other.version += 1
    assert torch.equal(logits_of(other, IDS), before)


def test_a_folder_without_an_adapter_is_an_error(make_policy, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter at"):
        load_adapter(make_policy().decoder.adapters(), tmp_path)


def test_a_fresh_adapter_changes_nothing(make_policy) -> None:
    ids = list(range(10, 40))
    assert torch.equal(logits_of(make_policy(blank=True).decoder, ids), logits_of(make_policy(rank=0).decoder, ids))
    assert not torch.equal(logits_of(make_policy().decoder, ids), logits_of(make_policy(rank=0).decoder, ids))


def test_unknown_adapter_targets_are_named(make_policy) -> None:
    with pytest.raises(ModelError, match="o_proj"):
        make_policy(rank=0).decoder.add_adapters(2, 4.0, seed=0, targets=("out_proj",))
    with pytest.raises(ModelError, match="take adapters together"):
        make_policy(rank=0).decoder.add_adapters(2, 4.0, seed=0, targets=("q_proj",))


def test_adapters_in_the_last_layers_only(make_policy) -> None:
    decoder = make_policy(rank=0).decoder
    with pytest.raises(ModelError, match=r"last 99 layers"):
        decoder.add_adapters(2, 4.0, seed=0, last_layers=99)
    decoder.add_adapters(2, 4.0, seed=0, last_layers=1)
    last = len(decoder.layers) - 1
    assert {name.split(".")[1] for name in decoder.adapters()} == {str(last)}


@pytest.mark.parametrize("kind", ["llama", "llama, a key head for each query head"])
def test_batching_does_not_change_outputs_or_gradients(kind: str, tmp_path: Path) -> None:
    save_hugging_face(kind, tmp_path)
    decoder = load_decoder(tmp_path, torch.float32)
    decoder.embed.requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in (20, 17, 23)]

    def last(chosen: list[list[int]]) -> torch.Tensor:
        tree = merge_prefixes(chosen)
        attend = TreeAttention(tree, decoder.heads // decoder.kv_heads, decoder.dtype)
        return decoder(tree.tokens, tree.positions, attend)[[path[-1] for path in tree.paths]]

    together, alone = last(sequences), torch.cat([last([sequence]) for sequence in sequences])
    assert torch.allclose(together, alone, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), decoder.embed)[0] for out in (together, alone)]
    assert gradients[0].abs().max() > 1 and torch.allclose(*gradients, atol=1e-4, rtol=1e-4)
