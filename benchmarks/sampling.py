"""Compares the torch engine with transformers' `generate` and vLLM: tokens per second by number of sequences.

    python benchmarks/sampling.py --sequences 1 8 16 32 --vllm .venv-vllm/bin/python

SmolLM2-135M, prompts of 200 tokens, 64 new tokens for every sequence, temperature 1, the end token never ends one. `own
prompts` gives each sequence another prompt; `shared` gives one prompt to each group of 8, which the engine and vLLM
compute once. They take turns, vLLM in a process with the interpreter that has it (`make setup-vllm`), the others in
this one; the numbers are medians of --repeats with the lowest and highest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    # No prompt twice in a run: vLLM would know it.
    draw = random.Random(f"{sequences}-{shared}-{seed}")
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


class VLLM:
    """vLLM's offline engine in a process of its own, which times itself; see `sampling_vllm.py`."""

    def __init__(self, python: Path, model: Path, sequences: int) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        libraries = [os.environ.get("LD_PRELOAD"), *map(str, (python.parent.parent / "lib").glob("libiomp5.so"))]
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "LD_PRELOAD": ":".join(filter(None, libraries))}
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("sampling_vllm.py"), model, str(sequences), str(PROMPT + NEW)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.version = self._answer()["version"]

    def rate(self, prompts: list[tuple[int, ...]]) -> float:
        """Tokens a second for `prompts`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new": NEW}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["tokens"] == NEW * len(prompts)
        # For a while after its work OpenMP waits for more with a processor in its hands.
        time.sleep(0.5)
        return answer["tokens"] / answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit("vLLM ended; its last words:\n" + "".join(self._log.readlines()[-20:]))
        return json.loads(line)


def rate(sample: Callable[[], int]) -> float:
    began = time.perf_counter()
    tokens = sample()
    return tokens / (time.perf_counter() - began)


def shown(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="compare with the vLLM that this interpreter has")
    arguments = parser.parse_args()
    path = resolve(arguments.model)
    vllm = VLLM(arguments.vllm, path, max(arguments.sequences)) if arguments.vllm else None
    began = time.perf_counter()
    decoder = submit(load_decoder, path, torch.bfloat16).result()
    tokenizer = load_tokenizer(path)
    loading = time.perf_counter() - began
    tokenizer.end_ids = frozenset()
    engine = TorchEngine(decoder, tokenizer, slots=max(arguments.sequences))
    model = submit(transformers.AutoModelForCausalLM.from_pretrained, path, dtype=torch.bfloat16).result().eval()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    versions += f", vLLM {vllm.version}" if vllm else ""
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, {versions}, {arguments.model} in bfloat16")
    print(f"model and tokenizer loaded from the cache in {loading:.1f} s\n")
    others = ["generate", *(["vLLM"] if vllm else [])]
    columns = ["sequences", "prompts", "midstream, tokens/s", *(f"{name}, tokens/s" for name in others)]
    columns += [f"midstream / {name}" for name in others]
    print(f"| {' | '.join(columns)} |")
    print("|" + " --- |" * len(columns))
    for sequences in arguments.sequences:
        for shared in (False, True) if sequences > 1 else (False,):
            rates: list[list[float]] = []
            # The first round warms all up and is not counted.
            for repeat in range(arguments.repeats + 1):
                prompts = prompts_of(sequences, shared, decoder.embed.shape[0], repeat)
                one = rate(lambda prompts=prompts, repeat=repeat: by_engine(engine, prompts, 1000 * repeat))
                # In the same thread as ours: with two, each would slow the other down.
                other = submit(rate, lambda prompts=prompts: by_transformers(model, prompts)).result()
                rates.append([one, other, *([vllm.rate(prompts)] if vllm else [])])
            sides = list(zip(*rates[1:], strict=True))
            medians = [statistics.median(side) for side in sides]
            cells = [str(sequences), "shared" if shared else "own", *(shown(side) for side in sides)]
            cells += [f"{medians[0] / median:.2f}" for median in medians[1:]]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
