"""The torch engine beside transformers' `generate`: tokens a second by number of sequences, and seconds to load.

    python benchmarks/sampling.py --sequences 1 8 16 32

SmolLM2-135M, prompts of 200 tokens, 64 new tokens for every sequence, temperature 1, the end token never ends one. `own
prompts` gives each sequence another prompt; `shared` gives one prompt to each group of 8, which the engine computes
once. The two take turns in one process; the numbers are medians of --repeats with the lowest and highest.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
import transformers

from midstream.core.sampling import SamplingParams
from midstream.engines.base import Request
from midstream.engines.chat import load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.torch.compute import submit
from midstream.engines.torch.decoder import load_decoder
from midstream.engines.torch.engine import TorchEngine

GROUP, PROMPT, NEW = 8, 200, 64


def prompts_of(sequences: int, shared: bool, vocabulary: int, seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    distinct = -(-sequences // GROUP) if shared else sequences
    made = [tuple(draw.randrange(100, vocabulary) for _ in range(PROMPT)) for _ in range(distinct)]
    return [made[i // GROUP if shared else i] for i in range(sequences)]


def by_engine(engine: TorchEngine, prompts: list[tuple[int, ...]], seed: int) -> int:
    """Sample in sessions of their own; returns the tokens sampled."""

    async def one(number: int, prompt: tuple[int, ...]) -> int:
        sampling = SamplingParams(max_tokens=NEW, temperature=1.0, seed=seed + number)
        session = str(number)
        completion = await engine.generate(Request(prompt_ids=prompt, sampling=sampling, session=session))
        engine.leave(session)
        return len(completion.ids)

    async def every() -> int:
        return sum(await asyncio.gather(*[one(number, prompt) for number, prompt in enumerate(prompts)]))

    return asyncio.run(every())


def by_transformers(model: transformers.PreTrainedModel, prompts: list[tuple[int, ...]]) -> int:
    ids = torch.tensor(prompts)
    with torch.no_grad():
        out = model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=True,
            temperature=1.0,
            top_k=0,
        )
    return (out.shape[1] - PROMPT) * len(prompts)


def rate(sample: Callable[[], int]) -> float:
    began = time.perf_counter()
    tokens = sample()
    return tokens / (time.perf_counter() - began)


def shown(rates: list[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    arguments = parser.parse_args()
    path = resolve(arguments.model)
    began = time.perf_counter()
    decoder = submit(load_decoder, path, torch.bfloat16).result()
    tokenizer = load_tokenizer(path)
    loading = time.perf_counter() - began
    tokenizer.end_ids = frozenset()
    engine = TorchEngine(decoder, tokenizer, slots=max(arguments.sequences))
    model = submit(transformers.AutoModelForCausalLM.from_pretrained, path, dtype=torch.bfloat16).result().eval()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, {arguments.model} in bfloat16")
    print(f"model and tokenizer loaded from the cache in {loading:.1f} s\n")
    print("| sequences | prompts | midstream, tokens/s | generate, tokens/s | ratio of medians |")
    print("| --- | --- | --- | --- | --- |")
    for sequences in arguments.sequences:
        for shared in (False, True) if sequences > 1 else (False,):
            ours: list[float] = []
            theirs: list[float] = []
            # The first round warms both up and is not counted.
            for repeat in range(arguments.repeats + 1):
                prompts = prompts_of(sequences, shared, decoder.embed.shape[0], repeat)
                one = rate(lambda prompts=prompts, repeat=repeat: by_engine(engine, prompts, 1000 * repeat))
                # In the same thread as ours: with two, each would slow the other down.
                other = submit(rate, lambda prompts=prompts: by_transformers(model, prompts)).result()
                if repeat:
                    ours.append(one)
                    theirs.append(other)
            ratio = statistics.median(ours) / statistics.median(theirs)
            kind = "shared" if shared else "own"
            print(f"| {sequences} | {kind} | {shown(ours)} | {shown(theirs)} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
