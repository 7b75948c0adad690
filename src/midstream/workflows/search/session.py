"""Runs the search and the prompt optimisation of a config, and compares workflows on its test tasks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from midstream.core.errors import ConfigError
from midstream.core.types import Task
from midstream.tasks import load_tasks
from midstream.tasks.taskset import TaskSet, check, take
from midstream.workflows import ir
from midstream.workflows.cache import ResponseCache
from midstream.workflows.config import WorkflowConfig
from midstream.workflows.executors import open_models
from midstream.workflows.files import load_workflow
from midstream.workflows.hybrid import write_hybrid
from midstream.workflows.model import Model
from midstream.workflows.passages import open_passages
from midstream.workflows.run.runner import WorkflowRunner
from midstream.workflows.search.candidate import Candidate
from midstream.workflows.search.comparison import Comparison, Entry, compare
from midstream.workflows.search.evaluation import WorkflowEvaluator
from midstream.workflows.search.guided import GuidedProposer, JoiningProposer
from midstream.workflows.search.made import Made, read_made
from midstream.workflows.search.prompts import PromptResult, optimise_prompts
from midstream.workflows.search.proposals import ModelProposer, Proposer, RandomProposer
from midstream.workflows.search.search import SearchResult, WorkflowSearch

BEST, PROMPTS = "best.json", "prompts.json"
"""The workflow that a search chose, and the one with optimised prompts, in the hybrid form."""
FOUND = {"best": BEST, "prompts": PROMPTS}
"""Files by the names that a comparison has for them."""
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
    async with open_runner(config, models) as (runner, opened):
        val, final = validation_tasks(config, tasks)
        evaluator = WorkflowEvaluator(runner, val, repeats=config.search.repeats, seed=config.search.seed)
        operators = config.operator_set.offered(runner.provided)
        proposer: Proposer
        if config.optimizer is not None:
            kind, model = "/".join(tasks.kinds), opened[config.optimizer]
            proposer = ModelProposer(model, operators, config.limits, kind=kind, models=runner.models)
        elif config.search.feedback:
            proposer = GuidedProposer(operators, config.limits)
        else:
            proposer = RandomProposer(operators, config.limits)
        if config.search.feedback:
            proposer = JoiningProposer(proposer, operators, config.limits)
        start = load_workflow(config.start, operators, config.limits)
        search = WorkflowSearch(
            start, evaluator, proposer, config.search, config.folder, config.limits, on_candidate, final
        )
        result = await search.run()
    made = Made(
        how=f"search ({config.search.selection}), {len(result.candidates)} candidates",
        tokens=result.tokens,
        cost_usd=result.cost_usd,
        model_calls=result.model_calls,
        seconds=result.seconds,
        val_score=result.candidate.score if result.final_score is None else result.final_score,
    )
    _write(result.best, made, config.folder / BEST)
    return result


def validation_tasks(config: WorkflowConfig, tasks: TaskSet) -> tuple[list[Task], list[Task]]:
    """The validation tasks of a search, and those of the choice among its finalists: others as far as there are any,
    then the first ones again, whose runs then have other seeds."""
    count = config.val_tasks if config.final_tasks is None else config.final_tasks
    found = take(tasks, "val", config.val_tasks + count)
    val, final = found[: config.val_tasks], found[config.val_tasks :]
    return val, [*final, *val][:count]


async def run_prompts(config: WorkflowConfig, models: Mapping[str, Model] | None = None) -> PromptResult:
    """Optimise the prompts of the config's `start` (`optimise_prompts`) and write `prompts.json` in its folder. As many
    training tasks as validation tasks are used."""
    tasks = load_tasks(config.tasks)
    check(tasks, ["train", "val"])
    seed = config.search.seed
    async with open_runner(config, models) as (runner, opened):
        train, val = (
            WorkflowEvaluator(runner, take(tasks, split, config.val_tasks), seed=seed) for split in ("train", "val")
        )
        start = load_workflow(config.start, runner.operators, config.limits)
        model = None if config.optimizer is None else opened[config.optimizer]
        result = await optimise_prompts(start, train, val, model=model, most_runs=config.prompt_runs, seed=seed)
    config.folder.mkdir(parents=True, exist_ok=True)
    _write(result.best, result.made, config.folder / PROMPTS)
    return result


async def run_comparison(
    config: WorkflowConfig,
    names: Sequence[str],
    *,
    written: Mapping[str, Entry] | None = None,
    most_tokens: int | None = None,
    models: Mapping[str, Model] | None = None,
) -> Comparison:
    """Compare workflows on the test tasks: files, baselines, `best` (the config's search), `prompts` (its prompt
    optimisation), and `written`, what policies wrote for these tasks. `most_tokens` is the budget of each run, the same
    for all, the tokens of writing the workflow included."""
    for name in written or ():
        if name in names:
            raise ConfigError(f"two entries are named '{name}'", "rename the folder of the run")
    entries = {name: _entry(config, name) for name in names} | dict(written or {})
    tasks = load_tasks(config.tasks)
    if most_tokens is not None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"most_tokens": most_tokens})})
    async with open_runner(config, models) as (runner, _):
        evaluator = WorkflowEvaluator(
            runner, test_tasks(config), repeats=config.search.repeats, seed=config.search.seed
        )
        return await compare(entries, evaluator, most_tokens, tasks.name)


def test_tasks(config: WorkflowConfig) -> list[Task]:
    """The test tasks of a config. Raises `ConfigError` when it has none."""
    if config.test_tasks < 1:
        raise ConfigError("test_tasks is 0, so there is nothing to compare on")
    tasks = load_tasks(config.tasks)
    check(tasks, ["test"])
    return take(tasks, "test", config.test_tasks)


def _entry(config: WorkflowConfig, name: str) -> Entry:
    path = config.folder / FOUND[name] if name in FOUND else Path(name)
    made = read_made(path) if name in FOUND else None
    return Entry(load_workflow(path if name in FOUND else name, limits=config.limits), made)


def _write(workflow: ir.Workflow, made: Made, path: Path) -> None:
    path.write_text(write_hybrid(workflow) + "\n", encoding="utf-8")
    made.write(path)


@asynccontextmanager
async def open_runner(
    config: WorkflowConfig, models: Mapping[str, Model] | None
) -> AsyncIterator[tuple[WorkflowRunner, Mapping[str, Model]]]:
    """The runner of a config with its models by name, which are closed with it."""
    async with AsyncExitStack() as stack:
        cache: ResponseCache | None = None
        if config.cache and models is None:
            config.folder.mkdir(parents=True, exist_ok=True)
            cache = ResponseCache(config.folder / CACHE)
            stack.callback(cache.close)
        opened = models or await open_models(config.executors, stack, cache)
        search = open_passages(config.passages)
        runner = WorkflowRunner(opened, settings=config.run, limits=config.limits, search=search)
        stack.push_async_callback(runner.close)
        yield runner, opened


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(comparison.as_json(), indent=2) + "\n", encoding="utf-8")
