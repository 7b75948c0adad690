"""Search strategies at an equal budget of tokens, on the set `varied` with the simulated executor.

    python benchmarks/workflows/search.py --seeds 12 --tokens 300000

Each strategy searches with each seed until its tokens are used up, those of the choice among finalists included, and
its choice is scored on the test tasks. A seed also draws the tasks, the same ones for every strategy. Prints the mean
test score with its interval over seeds, the paired difference to `random search`, and the tokens used.

`random search` develops any earlier candidate with equal probability, by an edit drawn blindly from the same edits; it
evaluates and chooses like the others. The strategies below it in the list leave out one part each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
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

BASELINE = "random search"
BLIND = "search.feedback=false"
STRATEGIES: Mapping[str, Sequence[str]] = {
    "soft_mixture": ("search.selection=soft_mixture",),
    "uct": ("search.selection=uct",),
    "beam": ("search.selection=beam",),
    BASELINE: ("search.selection=random", BLIND),
    "random parent": ("search.selection=random",),
    "no feedback": ("search.selection=soft_mixture", BLIND),
    "no early stop": ("search.selection=soft_mixture", "search.stop_early=false"),
    "no final choice": ("search.selection=soft_mixture", "search.final_repeats=0"),
    "random search, no early stop": ("search.selection=random", BLIND, "search.stop_early=false"),
}


async def searched(config: WorkflowConfig, seed: int, split: str) -> dict[str, float]:
    """Search, then score the choice on tasks of `split`."""
    async with AsyncExitStack() as stack:
        models = await open_models(config.executors, stack, ResponseCache())
        result = await run_search(config, models=models)
        async with WorkflowRunner(models, settings=config.run, limits=config.limits) as runner:
            tasks = take(load_tasks(config.tasks), split, config.test_tasks)
            evaluation = await WorkflowEvaluator(runner, tasks, seed=10_000 + seed).evaluate(result.best)
    return {
        "val": result.candidate.score or 0.0,
        "test": evaluation.score or 0.0,
        "run_tokens": (evaluation.tokens or 0) / max(1, len(evaluation.outcomes)),
        "tokens": float(result.tokens or 0),
        "candidates": float(len(result.candidates)),
    }


def report(found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print one line for each strategy."""
    print(f"\n{'strategy':30} {'test':>6}  {'95 %':15} {'to random search':>26}  candidates   tokens  of a run")
    base = [one["test"] for one in found[BASELINE]]
    for name, rows in found.items():
        scores = [row["test"] for row in rows]
        low, high = bootstrap_mean(scores)
        gap = [one - other for one, other in zip(scores, base, strict=True)]
        gap_low, gap_high = bootstrap_mean(gap)
        difference = f"{fmean(gap):+.3f} ({gap_low:+.3f} to {gap_high:+.3f})"
        candidates, tokens, run = (fmean(row[key] for row in rows) for key in ("candidates", "tokens", "run_tokens"))
        print(
            f"{name:30} {fmean(scores):6.3f}  {low:.3f} to {high:.3f}  {difference:>26}  {candidates:10.1f}"
            f"  {tokens:7.0f}  {run:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=300_000, help="budget of one search")
    parser.add_argument("--config", default="configs/workflow_compare.yaml")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--split", choices=("train", "test"), default="test", help="train to try settings")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the config, for all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in dict.fromkeys((*options.strategies, BASELINE))}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name in found:
                changes = [
                    f"runs_dir={folder}", f"name={name}-{seed}", f"search.seed={seed}", f"tasks.seed={seed}",
                    "search.rounds=1000", f"search.most_tokens={options.tokens}", *STRATEGIES[name], *options.set,
                ]  # fmt: skip
                found[name].append(
                    asyncio.run(searched(load_workflow_config(options.config, changes), seed, options.split))
                )
                print(seed, name, found[name][-1], flush=True)
    report(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
