"""What reading and checking a workflow costs, and what the runner adds to a node.

    python benchmarks/workflows/checking.py

CPU milliseconds of this process (not wall time, so that other programs disturb little): the median of repeated checks
of each baseline in the hybrid form and of the longest text that is refused by size, then of 64 runs at once of each
baseline with a model that answers at once, for each node.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Sequence

from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.workflows import ModelReply, WorkflowRunner, check_text, write_hybrid
from midstream.workflows.baselines import BASELINES, baseline

CHECKS, RUNS = 200, 64
TARGET_CHECK_MS, TARGET_NODE_MS = 2.0, 2.0


class Immediate:
    """Answers every call at once."""

    name = "immediate"

    async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        return ModelReply(text="<solution_letter>A</solution_letter>", prompt_tokens=10, completion_tokens=5)


def check_ms(text: str) -> float:
    """Median CPU milliseconds of one check."""
    took: list[float] = []
    for _ in range(CHECKS):
        began = time.process_time()
        check_text(text)
        took.append((time.process_time() - began) * 1000)
    return statistics.median(took)


async def node_ms(name: str) -> tuple[float, int]:
    """CPU milliseconds of a node, and the number of nodes, with 64 runs at once."""
    async with WorkflowRunner(Immediate()) as runner:
        began = time.process_time()
        runs = await asyncio.gather(*(runner.run(baseline(name), "2+2", seed=seed) for seed in range(RUNS)))
        took = (time.process_time() - began) * 1000
    count = sum(len(run.nodes) for run in runs)
    return took / count, count


def main() -> None:
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; CPU ms")
    print("\n| workflow | characters | check | node, 64 runs at once |\n| --- | --- | --- | --- |")
    for name in BASELINES:
        text = write_hybrid(baseline(name))
        node, _ = asyncio.run(node_ms(name))
        print(f"| {name} | {len(text)} | {check_ms(text):.2f} | {node:.2f} |")
    print(f"| a megabyte, refused | {1 << 20} | {check_ms('{' + 'x' * (1 << 20)):.3f} | |")
    print(f"\ntargets: {TARGET_CHECK_MS:g} ms a check, {TARGET_NODE_MS:g} ms a node")


if __name__ == "__main__":
    main()
