"""vLLM's side of `sampling.py`, run by the interpreter that has vLLM: a request a line in, the seconds it took out.

    .venv-vllm/bin/python benchmarks/sampling_vllm.py MODEL SEQUENCES LENGTH

The offline engine in this very process: no server, no copies between processes. Every sequence gets the number of
tokens asked for, each with its log-probability, as our engine returns them; prefix caching is on.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import vllm  # pyright: ignore[reportMissingImports]  it reads what is set above


def main() -> None:
    model, sequences, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # Whatever prints does so elsewhere: the answers have this stream to themselves.
    answers, sys.stdout = os.fdopen(os.dup(1), "w", buffering=1), sys.stderr
    os.dup2(2, 1)
    engine = vllm.LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=True,
        max_num_seqs=sequences,
        max_model_len=length,
        block_size=32,
        kv_cache_memory_bytes=1 << 30,
    )
    print(json.dumps({"version": vllm.__version__}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        sampling = vllm.SamplingParams(temperature=1.0, max_tokens=asked["new"], ignore_eos=True, logprobs=0)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        began = time.perf_counter()
        done = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(one.outputs[0].token_ids) for one in done)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers)


if __name__ == "__main__":
    main()
