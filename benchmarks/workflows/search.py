"""Search strategies at an equal budget of tokens, on the set `varied` with the simulated executor.

    python benchmarks/workflows/search.py --seeds 8 --tokens 400000

Each strategy searches with each seed until its tokens are used up, chooses on validation, and its choice is scored once
on the test tasks. Prints the mean test score with its interval over seeds, and the paired difference to `random`, which
develops any earlier candidate with equal probability.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean

from midstream.core.statistics import bootstrap_mean
from midstream.tasks import load_tasks, take
from midstream.workflows.cache import ResponseCache
from midstream.workflows.config import WorkflowConfig, load_workflow_config
from midstream.workflows.executors import open_models
from midstream.workflows.run.runner import WorkflowRunner
from midstream.workflows.search.evaluation import WorkflowEvaluator
from midstream.workflows.search.session import run_search

STRATEGIES = ("soft_mixture", "uct", "beam", "random")


async def searched(config: WorkflowConfig) -> dict[str, float]:
    """Search, then score the choice on the test tasks."""
    async with AsyncExitStack() as stack:
        models = await open_models(config.executors, stack, ResponseCache())
        result = await run_search(config, models=models)
        async with WorkflowRunner(models, settings=config.run, limits=config.limits) as runner:
            tasks = take(load_tasks(config.tasks), "test", config.test_tasks)
            evaluation = await WorkflowEvaluator(runner, tasks, seed=10_000).evaluate(result.best)
    return {
        "val": result.candidate.score or 0.0,
        "test": evaluation.score or 0.0,
        "tokens": float(result.tokens),
        "candidates": float(len(result.candidates)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400_000, help="budget of one search")
    parser.add_argument("--config", default="configs/workflow_compare.yaml")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in dict.fromkeys((*options.strategies, "random"))}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name in found:
                changes = [
                    f"runs_dir={folder}", f"name={name}-{seed}", f"search.selection={name}", f"search.seed={seed}",
                    "search.rounds=1000", f"search.most_tokens={options.tokens}",
                ]  # fmt: skip
                found[name].append(asyncio.run(searched(load_workflow_config(options.config, changes))))
                print(seed, name, found[name][-1], flush=True)
    print(f"\n{'strategy':14} {'test':>6}  {'95 %':15} {'to random':>24}  candidates")
    base = [one["test"] for one in found["random"]]
    for name, rows in found.items():
        scores = [row["test"] for row in rows]
        low, high = bootstrap_mean(scores)
        gap = [one - other for one, other in zip(scores, base, strict=True)]
        gap_low, gap_high = bootstrap_mean(gap)
        difference = f"{fmean(gap):+.3f} ({gap_low:+.3f} to {gap_high:+.3f})"
        candidates = fmean(row["candidates"] for row in rows)
        print(f"{name:14} {fmean(scores):6.3f}  {low:.3f} to {high:.3f}  {difference:>24}  {candidates:.1f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
