"""Runs the search of a config, and compares workflows on its test tasks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from midstream.core.errors import ConfigError
from midstream.tasks import load_tasks
from midstream.tasks.taskset import check, take
from midstream.workflows import ir
from midstream.workflows.cache import ResponseCache
from midstream.workflows.config import WorkflowConfig
from midstream.workflows.executors import open_models
from midstream.workflows.files import load_workflow
from midstream.workflows.hybrid import write_hybrid
from midstream.workflows.model import Model
from midstream.workflows.run.runner import WorkflowRunner
from midstream.workflows.search.candidate import Candidate
from midstream.workflows.search.comparison import Comparison, compare
from midstream.workflows.search.evaluation import WorkflowEvaluator
from midstream.workflows.search.proposals import ModelProposer, Proposer, RandomProposer
from midstream.workflows.search.search import SearchResult, WorkflowSearch

BEST = "best.json"
"""The chosen workflow in the hybrid form."""
CACHE = "replies.sqlite"


async def run_search(
    config: WorkflowConfig,
    on_candidate: Callable[[Candidate], None] | None = None,
    models: Mapping[str, Model] | None = None,
) -> SearchResult:
    """Search, or go on with the search in the config's folder, and write `best.json` there. `models` replace those of
    the config."""
    tasks = load_tasks(config.tasks)
    check(tasks, ["val"])
    async with _opened(config, models) as (runner, opened):
        evaluator = WorkflowEvaluator(
            runner, take(tasks, "val", config.val_tasks), repeats=config.search.repeats, seed=config.search.seed
        )
        operators = config.operator_set.offered(runner.provided)
        proposer: Proposer = RandomProposer(operators, config.limits)
        if config.optimizer is not None:
            kind, model = "/".join(tasks.kinds), opened[config.optimizer]
            proposer = ModelProposer(model, operators, config.limits, kind=kind, models=runner.models)
        start = load_workflow(config.start, operators, config.limits)
        search = WorkflowSearch(start, evaluator, proposer, config.search, config.folder, config.limits, on_candidate)
        result = await search.run()
    path = config.folder / BEST
    path.write_text(write_hybrid(result.best) + "\n", encoding="utf-8")
    return result


async def run_comparison(
    config: WorkflowConfig,
    names: Sequence[str],
    *,
    most_tokens: int | None = None,
    models: Mapping[str, Model] | None = None,
) -> Comparison:
    """Compare workflows (files or baselines; `best` is the config's search) on the test tasks. `most_tokens` is the
    budget of each run, the same for all."""
    if config.test_tasks < 1:
        raise ConfigError("test_tasks is 0, so there is nothing to compare on")
    tasks = load_tasks(config.tasks)
    check(tasks, ["test"])
    workflows: dict[str, ir.Workflow] = {}
    for name in names:
        path: str | Path = config.folder / BEST if name == "best" else name
        workflows[name] = load_workflow(path, limits=config.limits)
    if most_tokens is not None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"most_tokens": most_tokens})})
    async with _opened(config, models) as (runner, _):
        evaluator = WorkflowEvaluator(
            runner, take(tasks, "test", config.test_tasks), repeats=config.search.repeats, seed=config.search.seed
        )
        return await compare(workflows, evaluator, most_tokens)


@asynccontextmanager
async def _opened(
    config: WorkflowConfig, models: Mapping[str, Model] | None
) -> AsyncIterator[tuple[WorkflowRunner, Mapping[str, Model]]]:
    async with AsyncExitStack() as stack:
        cache: ResponseCache | None = None
        if config.cache and models is None:
            config.folder.mkdir(parents=True, exist_ok=True)
            cache = ResponseCache(config.folder / CACHE)
            stack.callback(cache.close)
        opened = models or await open_models(config.executors, stack, cache)
        runner = WorkflowRunner(opened, settings=config.run, limits=config.limits)
        stack.push_async_callback(runner.close)
        yield runner, opened


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(comparison.as_json(), indent=2) + "\n", encoding="utf-8")
