"""`tiny`: a Llama with about a million seeded random weights and a small byte-level tokenizer, built in a second.

It supports everything the real models do and knows nothing. Any text encodes: the vocabulary contains all bytes.
Special tokens and chat format are those of SmolLM2, including ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SEED = 0
CONTEXT = 4096
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Text of agents and tools; it only determines which letters share a token.
_CORPUS = """
You are the planner of a small team. Choose one tool, give its arguments, and stop when the answer is known.
You are the executor. You are the verifier: is the memory enough to answer the question?
Reply with yes or no and a reason.
You are the generator. Write the final answer to the question from the memory, and nothing else.
The query is the question of the user. Available tools: calculator, search, echo. The tool returned a result.
Justification, context, sub-goal, tool, arguments, result, memory, turn, turns left, budget, verdict, final answer.
{"tool": "calculator", "arguments": {"expression": "12 * (3 + 4)"}}
{"tool": "search", "arguments": {"query": "capital of"}}
<think> </think> <tool> </tool> <tool_call> </tool_call> <answer> </answer> <result> </result> <search> <calculator>
What is the capital of France? The capital of France is Paris. What is the currency of Japan? The population is
What is 23 times 7? What is 17 plus 25? How much is the sum, the difference, the product? How many are there in total?
Which country has the larger area, which city has more people, and by how much? The area of Peru in square kilometres is
system user assistant tool message name content error unknown invalid expected value number string true false null none
one two three four five six seven eight nine ten what which where when who how why is are was were has have had
"""


def build(target: Path) -> str:
    """Write the model and its tokenizer to `target`. Equal versions of torch and tokenizers write equal bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = _train_tokenizer()
    end_of_text, im_start, im_end = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=end_of_text,
        bos_token=im_start,
        eos_token=im_end,
        pad_token=im_end,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: Any = LlamaForCausalLM(config)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return f"random weights, seed {SEED}"


def _train_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS.splitlines(), trainer)
    return backend
