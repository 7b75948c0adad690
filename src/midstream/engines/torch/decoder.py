"""A decoder-only transformer over flat token lists: one forward pass for sampling, learning and checking.

Tokens of any number of sequences form one flat list without padding; only attention distinguishes sequences, and it is
passed in as a function (`attention.py`). Sampler and learner run the same operations on the same weights row by row, so
their log-probabilities of the same tokens agree.

Covers the Llama family in Hugging Face's naming: RMSNorm, rotary positions, grouped-query attention, gated MLP; with or
without biases on q/k/v, norms on q/k, tied embeddings. Does not cover sliding windows, mixtures of experts, multimodal
towers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from midstream.core.errors import ModelError
from midstream.engines.publication import POLICY
from midstream.engines.torch.checkpoint_files import read_config, read_weights, weight_files
from midstream.engines.torch.hf_names import from_hf, to_hf
from midstream.engines.torch.layers import AT_LEAST_TWO, Attend, Layer, LMHead, Projection
from midstream.engines.torch.lora import Adapter, AdapterChoice, load_adapter, save_adapter
from midstream.engines.torch.memory import reserve
from midstream.engines.torch.products import Rows

if TYPE_CHECKING:
    from midstream.engines.torch.allowed import Grammars

RESERVED_SIZES = 3
"""Multiple of a checkpoint's size reserved in huge pages: fused and packed weights, keys and values."""


class Decoder(nn.Module):
    """The model: `forward` returns hidden states, `lm_head` maps them to logits.

    `version` counts weight updates. `policy_version` reports it, and caches of casts use it to detect changes."""

    def __init__(self, config: Mapping, weights: Mapping[str, Tensor], source: str) -> None:
        super().__init__()
        self.config, self.source = dict(config), source
        self.heads = int(config["num_attention_heads"])
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        hidden = int(config["hidden_size"])
        self.head_dim = int(config.get("head_dim") or hidden // self.heads)
        self.eps = float(config["rms_norm_eps"])
        self.context_length = int(config["max_position_embeddings"])
        self.adapter_rank, self.adapter_alpha = 0, 0.0
        """Rank and alpha of all adapters."""
        self.adapter_names: tuple[str, ...] = ()
        """In the order in which they were added."""
        self.version = 0
        self.gradient_checkpointing = False
        """Recompute a layer's activations in the backward pass instead of storing them."""
        self.rows, self.queries = AT_LEAST_TWO, Rows()
        """Row counts for products with weights, and for those of attention."""
        self.grammars: Grammars | None = None
        """Compiles constraints for the model's tokenizer; set by the first engine that samples from it."""
        self.embed = nn.Parameter(weights["model.embed_tokens.weight"], requires_grad=False)
        self.final_norm = nn.Parameter(weights["model.norm.weight"], requires_grad=False)
        head = weights.get("lm_head.weight")
        self.lm_head = LMHead(self.embed if head is None else nn.Parameter(head, requires_grad=False))
        self.layers = nn.ModuleList(self._layer(i, weights) for i in range(int(config["num_hidden_layers"])))
        cos, sin = _rotary_tables(config, self.head_dim, self.context_length)
        self.register_buffer("cos", cos.to(self.embed.dtype), persistent=False)
        self.register_buffer("sin", sin.to(self.embed.dtype), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def _layer(self, index: int, weights: Mapping[str, Tensor]) -> Layer:
        base = f"model.layers.{index}."

        def fuse(*names: str) -> Projection:
            full = [base + name for name in names]
            parts = [weights[f"{name}.weight"] for name in full]
            biases = [weights[f"{name}.bias"] for name in full if f"{name}.bias" in weights]
            if biases and len(biases) != len(parts):
                raise ModelError(f"'{self.source}': {full} mix projections with and without bias", "use another model")
            bias = torch.cat(biases) if biases else None
            return Projection(torch.cat(parts), bias, full, [len(part) for part in parts])

        norms = {
            "attention": weights[f"{base}input_layernorm.weight"],
            "mlp": weights[f"{base}post_attention_layernorm.weight"],
        }
        for part in ("q", "k"):
            if f"{base}self_attn.{part}_norm.weight" in weights:
                norms[part] = weights[f"{base}self_attn.{part}_norm.weight"]
        return Layer(
            fuse("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            fuse("self_attn.o_proj"),
            fuse("mlp.gate_proj", "mlp.up_proj"),
            fuse("mlp.down_proj"),
            norms,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            eps=self.eps,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, hidden] -> [n, vocab] in the model's dtype."""
        return self.lm_head(hidden, self.version)

    def compute_by(self, rows: Rows, queries: Rows) -> None:
        """Use `rows` for products with weights, and `queries` for those of attention, from now on."""
        self.rows, self.queries = rows, queries
        for product in (self.lm_head, *self.projections().values()):
            product.rows, product.packed.allowed = rows, rows.packed

    @property
    def vocabulary_size(self) -> int:
        return self.lm_head.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.embed.shape[1]

    @property
    def tied(self) -> bool:
        """Whether the output layer has the weight of the embedding."""
        return self.lm_head.weight is self.embed

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.device

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, adapter: AdapterChoice = "") -> Tensor:
        """Return hidden states [n, hidden] after the final norm, for flat `tokens` and `positions` [n]. `adapter` is
        that of all tokens by name (empty: the first), or of each, or None for the base model."""
        if isinstance(adapter, str):
            adapter = self.adapter_called(adapter)
        x = F.embedding(tokens, self.embed)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            arguments = (x, cos, sin, partial(attend, index), self.version, adapter)
            if again:
                x = cast(Tensor, checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                x = layer(*arguments)
        return F.rms_norm(x, (x.shape[-1],), self.final_norm, self.eps)

    def adapter_called(self, name: str) -> str | None:
        """Return the full name of an adapter: of the first for an empty one, None if there are none. Raises
        `ModelError` for an unknown name."""
        if not self.adapter_names:
            return None
        if name and name not in self.adapter_names:
            raise ModelError(f"the model has no adapter '{name}'", f"it has: {', '.join(self.adapter_names)}")
        return name or self.adapter_names[0]

    def add_adapters(
        self,
        rank: int,
        alpha: float,
        seed: int,
        targets: tuple[str, ...] = (),
        last_layers: int | None = None,
        name: str = POLICY,
    ) -> None:
        """Add a new adapter, called `name`, to every projection (or those whose name ends in one of `targets`) of every
        layer (or the `last_layers`); the base stays frozen. All adapters have the same rank and alpha."""
        generator = torch.Generator().manual_seed(seed)
        self.adapter_rank, self.adapter_alpha = rank, alpha
        found = False
        first = 0 if last_layers is None else len(self.layers) - last_layers
        if first < 0:
            raise ModelError(
                f"adapters are requested for the last {last_layers} layers, but '{self.source}' has {len(self.layers)}",
                "set policy.lora.last_layers to fewer, or leave it out for all",
            )
        adapted = [p for layer in self.layers[first:] for p in layer.modules() if isinstance(p, Projection)]
        for projection in adapted:
            chosen = [not targets or name.rsplit(".", 1)[1] in targets for name in projection.names]
            if not any(chosen):
                continue
            if not all(chosen):
                raise ModelError(
                    f"adapter targets {list(targets)} name some of {projection.names}, not all",
                    "these take adapters together: q_proj, k_proj and v_proj; gate_proj and up_proj",
                )
            found = True
            adapter = Adapter(projection.names, projection.sizes, projection.weight.shape[1], rank, alpha / rank)
            adapter.reset(generator)
            projection.add_adapter(name, adapter.to(self.device))
        if not found:
            known = sorted({name.rsplit(".", 1)[1] for p in self.projections().values() for name in p.names})
            raise ModelError(f"no projection is named {list(targets)}", f"one of: {', '.join(known)}")
        self.adapter_names = tuple(dict.fromkeys((*self.adapter_names, name)))

    def pack(self) -> None:
        """Pack the weights for sampling now instead of at the first token."""
        for projection in self.projections().values():
            projection.packed.pack(projection.weight, 0)
        self.lm_head.packed.pack(self.lm_head.weight, 0)

    def projections(self) -> dict[str, Projection]:
        """Return every fused projection by its module path."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Projection)}

    def adapters(self, name: str = "") -> dict[str, Adapter]:
        """Return the parts of an adapter (by default the first) by the path of their projection; empty without any."""
        called = self.adapter_called(name)
        if called is None:
            return {}
        return {path: p.adapters[called] for path, p in self.projections().items() if called in p.adapters}

    def adapter_parameters(self, name: str = "") -> dict[str, Tensor]:
        """Return the parameters of an adapter (not copies) under peft's names."""
        parts = self.adapters(name).values()
        return {
            f"{own}.lora_{letter}": value
            for adapter in parts
            for own, a, b in zip(adapter.names, adapter.down, adapter.up, strict=True)
            for letter, value in (("A", a), ("B", b))
        }

    def save_adapter(self, folder: Path, base: str, name: str = "") -> None:
        """Write an adapter in peft's format. `base` is the name of this model."""
        save_adapter(self.adapters(name), folder, rank=self.adapter_rank, alpha=self.adapter_alpha, base=base)

    def load_adapter(self, folder: Path, name: str = "") -> None:
        """Read an adapter in peft's format. Raises `ModelError`, and changes nothing, if it does not fit."""
        load_adapter(self.adapters(name), folder)

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter; nothing happens if there is none of that name."""
        for projection in self.projections().values():
            projection.remove_adapter(name)
        self.adapter_names = tuple(one for one in self.adapter_names if one != name)

    def merge_adapter(self, name: str = "") -> None:
        """Merge an adapter into the weights, and remove it."""
        if (called := self.adapter_called(name)) is not None:
            for projection in self.projections().values():
                projection.merge_adapter(called)
            self.remove_adapter(called)
        self.version += 1

    def forget_copies(self) -> None:
        """Drop cast and packed copies of weights: they changed, and the version may not have."""
        for product in (self.lm_head, *self.projections().values()):
            product.forget_copies()

    def to_hf(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters of the base model under Hugging Face's names."""
        return to_hf(self.projections(), values)

    def from_hf(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invert `to_hf`. Raises `ModelError` for tensors of another model."""
        return from_hf(self.projections(), dict(self.named_parameters()), values)


def _rotary_tables(config: Mapping, head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [length, head_dim] in fp32, with the scaling of the model's config."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    keys = ("hidden_size", "num_attention_heads", "max_position_embeddings", "rope_parameters")
    shaped = LlamaConfig(head_dim=head_dim, **{key: config[key] for key in keys})
    cos, sin = LlamaRotaryEmbedding(shaped)(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


def load_decoder(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Decoder:
    """Read a Hugging Face checkpoint folder (`config.json` and safetensors). Raises `ModelError` for an unsupported
    model."""
    config = read_config(folder)
    if torch.device(device).type == "cpu":
        reserve(RESERVED_SIZES * sum(file.stat().st_size for file in set(weight_files(folder).values())))
    decoder = Decoder(config, read_weights(folder, config, dtype, device), str(folder))
    decoder.pack()
    return decoder
