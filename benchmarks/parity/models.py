"""Small models with random weights and a tokenizer of whole words, saved once and loaded by both systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "qwen3")
SPECIAL = ("<pad>", "<end>", "<ask>", "<say>")
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<ask> {{ message['content'] }} "
    "{% else %}<say> {{ message['content'] }}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<say> {% endif %}"
)


def words(vocab: int) -> list[str]:
    """What is not special in a vocabulary of that size."""
    return [f"w{number}" for number in range(vocab - len(SPECIAL))]


def save_model(folder: Path, architecture: str, *, vocab: int = 512, spread: float = 0.02, seed: int = 0) -> Path:
    """Write a model of about 1.3 million weights to `folder`. `spread` is the standard deviation of its matrices."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": spread,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "dtype": torch.float32,
    }
    torch.manual_seed(seed)
    if architecture == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32, tie_word_embeddings=True))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    with torch.no_grad():
        # Initially norms are all 1 and biases all 0, so mixing up two of them would not be noticed.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    _tokenizer(vocab).save_pretrained(folder)
    return folder


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {word: number for number, word in enumerate([*SPECIAL, *words(vocab)])}
    backend = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<pad>",
        additional_special_tokens=["<ask>", "<say>"],
        chat_template=TEMPLATE,
        padding_side="left",
    )


def load_model(folder: Path) -> Any:
    """The model as Hugging Face loads it, in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def log_probs_of(
    model: Any, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], temperature: float
) -> Tensor:
    """log p of every token of a completion [tokens], by plain means that are neither system's."""
    logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1]
    every = torch.log_softmax(logits.float() / temperature, -1)
    return every.gather(-1, torch.tensor(completion_ids)[:, None])[:, 0]
