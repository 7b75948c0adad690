"""Profiles a learning pass and a decoding step, and compares them with the machine's limits.

    make bench-limits

SmolLM2-135M in bfloat16 with adapters of rank 16. The learning pass is forward and backward over 4,096 distinct tokens,
half of them sampled: two prompts of 256 tokens, 8 attempts each, 4 turns of 32 tokens with 32 between them. A decoding
step samples one token for each sequence after 232. Seconds are medians without a profiler; shares are from one pass
with it. The limits are a product of square matrices and a sum over a gigabyte, on the same threads.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from midstream.core.sampling import SamplingParams
from midstream.engines.models import resolve
from midstream.engines.torch.attention import SlotAttention, SlotCache
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.engines.torch.sampling import sample
from midstream.learn.model.log_probs import TokenSequence, score

REST = "all else"
KINDS = {
    "aten::mm": "products with weights",
    "aten::addmm_": "products with weights",
    "mkldnn::_linear_pointwise": "products with weights",
    "aten::bmm": "attention's products",
}


def learning_pass(decoder: Decoder) -> Callable[[], None]:
    draw = random.Random(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000, 40_000) for _ in range(n))

    sequences: list[TokenSequence] = []
    for _ in range(2):
        prompt = tokens(256)
        for _ in range(8):
            so_far = prompt
            for _ in range(4):
                sequences.append(TokenSequence(so_far, tokens(32)))
                so_far += sequences[-1].response_ids + tokens(32)

    def once() -> None:
        score(decoder, sequences).log_probs.mean().backward()

    return once


def decoding_step(decoder: Decoder, rows: int, held: int = 232) -> tuple[Callable[[], None], int]:
    """A step, and the bytes of weights, keys and values that it reads."""
    layers = len(decoder.layers)
    cache = SlotCache(layers, decoder.kv_heads, decoder.head_dim, decoder.dtype, decoder.device)
    cache.reserve(rows, held + 1)
    tokens = torch.arange(1000, 1000 + rows)

    @torch.no_grad()
    def once() -> None:
        attend = SlotAttention(cache, range(rows), [held] * rows, [1] * rows, decoder.heads // decoder.kv_heads)
        logits = decoder.logits(decoder(tokens, attend.positions, attend))
        sample(logits, [SamplingParams(temperature=1.0)] * rows, range(rows), [0] * rows)

    weights = sum(p.weight.nbytes for p in decoder.projections().values()) + decoder.lm_head.weight.nbytes
    return once, weights + cache.keys.nbytes + cache.values.nbytes


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median, after two that are not counted."""
    taken: list[float] = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def flops(name: str, shapes: Sequence[Sequence[int]]) -> int:
    """Of a product: twice its rows, inner size and columns."""
    if name == "mkldnn::_linear_pointwise":
        return 2 * prod(shapes[0]) * shapes[1][0]
    left, right = shapes[1:3] if name == "aten::addmm_" else shapes[:2]
    return 2 * prod(left) * right[-1]


def profiled(run: Callable[[], None]) -> dict[str, tuple[float, float]]:
    """By kind of operation: its share of the time, and what its products reached in GFLOP/s."""
    spent: dict[str, float] = defaultdict(float)
    done: dict[str, int] = defaultdict(int)
    # Twice: noting shapes costs time and memory, which must not be in the shares.
    for with_shapes in (False, True):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=with_shapes) as profiler:
            run()
        for event in profiler.key_averages(group_by_input_shape=with_shapes):
            if not with_shapes:
                spent[KINDS.get(event.key, REST)] += event.self_cpu_time_total
            elif event.key in KINDS:
                done[KINDS[event.key]] += flops(event.key, event.input_shapes) * event.count
    total = sum(spent.values())
    return {of: (spent[of] / total, done[of] / spent[of] / 1e3) for of in spent}


def show(title: str, by_kind: dict[str, tuple[float, float]]) -> None:
    print(f"\n{title}\n\n| operations | share of the time | GFLOP/s of its products |\n| --- | --- | --- |")
    for of, (share, rate) in sorted(by_kind.items(), key=lambda item: -item[1][0]):
        print(f"| {of} | {100 * share:.0f} % | {f'{rate:.0f}' if rate else '-'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 32])
    arguments = parser.parse_args()
    decoder = load_decoder(resolve(arguments.model), torch.bfloat16)
    decoder.add_adapters(16, 32, 0)

    square = torch.randn(2048, 2048, dtype=torch.bfloat16)
    fastest = 2 * 2048**3 / seconds(lambda: square @ square, 20) / 1e9
    gigabyte = torch.ones(2**28)
    widest = gigabyte.nbytes / seconds(gigabyte.sum, 10) / 1e9
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.model} in bfloat16")
    print(f"limits: {fastest:.0f} GFLOP/s in products, {widest:.0f} GB/s of memory read")

    once = learning_pass(decoder)
    taken, by_kind = seconds(once, 3), profiled(once)
    show(f"A learning pass of 4,096 tokens: {taken:.1f} s", by_kind)
    for rows in arguments.sequences:
        step, read = decoding_step(decoder, rows)
        taken = seconds(step, 30)
        rate = read / taken / 1e9
        title = f"A decoding step of {rows} sequences: {1e3 * taken:.0f} ms, {read / 1e6:.0f} MB read, {rate:.1f} GB/s"
        show(title, profiled(step))


if __name__ == "__main__":
    main()
