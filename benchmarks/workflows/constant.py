"""What constant workflows score on the set `assorted` when SmolLM2-135M answers their operators.

    python benchmarks/workflows/constant.py --cache replies.sqlite

Each workflow answers the same test tasks with greedy replies of at most 36 tokens: the baselines `io` and `cot`, and
the shapes of the demonstrations that use Custom, Programmer and Search. Prints the score with its bootstrap interval
over tasks, the difference to the best workflow, the tokens of a run, and scores by sort.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean

from midstream.core.statistics import bootstrap_mean
from midstream.core.types import Task
from midstream.tasks import take
from midstream.tasks.assorted import SORTS, assorted
from midstream.workflows import OPERATORS, RunSettings, WorkflowRunner, ir, read_workflow
from midstream.workflows.baselines import baseline
from midstream.workflows.cache import ResponseCache
from midstream.workflows.demonstrate import SHAPES
from midstream.workflows.executors import ExecutorConfig, open_models
from midstream.workflows.passages import FACTS, open_passages
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator

SETTINGS = RunSettings(max_tokens=36, temperature=0.0, timeout_s=600, call_timeout_s=600)
NAMES = ("direct", "steps", "program", "lookup", "lookup_program")


def workflows() -> dict[str, ir.Workflow]:
    shapes = {name: read_workflow(SHAPES[name].text(random.Random(0)), OPERATORS) for name in NAMES}
    return {"io": baseline("io"), "cot": baseline("cot"), **shapes}


async def evaluated(tasks: Sequence[Task], model: str, cache: Path | None) -> dict[str, Evaluation]:
    found: dict[str, Evaluation] = {}
    async with AsyncExitStack() as stack:
        models = await open_models({"executor": ExecutorConfig(engine=model)}, stack, ResponseCache(cache))
        runner = WorkflowRunner(models, settings=SETTINGS, search=open_passages(FACTS))
        await stack.enter_async_context(runner)
        for name, workflow in workflows().items():
            found[name] = await WorkflowEvaluator(runner, tasks, batch=len(tasks)).evaluate(workflow)
            print(f"{name}: {found[name].score:.3f}", flush=True)
    return found


def print_table(found: Mapping[str, Evaluation], tasks: Sequence[Task]) -> None:
    best = max(found, key=lambda name: found[name].score or 0.0)
    counts = Counter(task.metadata["sort"] for task in tasks)
    heading = "  ".join(f"{sort} ({counts[sort]})" for sort in SORTS)
    print(f"\n{'workflow':16} score (95 %)       to {best} (95 %)   tokens  {heading}")
    for name, one in found.items():
        scores = one.by_task
        low, high = one.interval()
        gaps = [scores[task.id] - found[best].by_task[task.id] for task in tasks]
        gap_low, gap_high = bootstrap_mean(gaps)
        by_sort = [fmean(scores[task.id] for task in tasks if task.metadata["sort"] == sort) for sort in SORTS]
        shown = f"{one.score:.2f} ({low:.2f}-{high:.2f})   {fmean(gaps):+.2f} ({gap_low:+.2f} to {gap_high:+.2f})"
        print(f"{name:16} {shown}   {(one.tokens or 0) / len(tasks):5.0f}  {'  '.join(f'{s:.2f}' for s in by_sort)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0, help="seed of the tasks")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cache", type=Path, help="file for the model's replies, which a later run reads")
    options = parser.parse_args()
    tasks = take(assorted(options.seed), "test", options.tasks)
    print_table(asyncio.run(evaluated(tasks, options.model, options.cache)), tasks)


if __name__ == "__main__":
    main()
