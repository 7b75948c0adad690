"""Evaluates an agent on a task set: one greedy attempt per task, with confidence intervals. Writes nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.blocking import run_blocking
from midstream.core.errors import ConfigError
from midstream.core.types import Task, Trajectory
from midstream.evaluate.agent import AgentSource, find_agent, load_agent
from midstream.evaluate.runs import find_run
from midstream.gateway.in_process import InProcessGateway
from midstream.tasks.row_files import is_task_file

if TYPE_CHECKING:
    from midstream.evaluate.runs import Row
    from midstream.learn.config import TrainConfig
    from midstream.learn.run.setup import TrainingContext

Progress = Callable[[int, int, float], None]
"""Called with the number of finished attempts, the total, and sampled tokens per second."""

_log = logging.getLogger(__name__)
REPORT_EVERY_S = 0.5
SHOWN_ERRORS = 5
DEFAULT_TASKS = 64


def evaluate(
    *,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    tasks: str | None = None,
    fields: Mapping[str, str] | None = None,
    split: str | None = None,
    n: int | None = None,
    flow: str | None = None,
    runs_dir: str | Path = "runs",
    trust: bool = False,
    progress: Progress | None = None,
) -> Row:
    """Evaluate an agent with greedy sampling and return a row in the format of `evals.jsonl`.

    The agent comes from a `run` (its newest checkpoint; a folder, or a name in `runs_dir`), a `checkpoint`, a `config`
    or a `model`. `tasks` is a task file or the name of a task set, and replaces the config's. Without `split`, all
    tasks of a file are used, and the split `test` of any other set. `fields` are options of the task source
    (`{"answer": "target"}`, see `TaskSourceConfig`). `n` limits the number of tasks; for an unbounded set it defaults
    to `trainer.test_tasks`.

    The row holds success with its Wilson interval, also by kind, `errors` (reasons of failed attempts, most frequent
    first) and `samples` (all attempts). Failed attempts count as unsuccessful. The config of a run or checkpoint from
    outside `runs_dir` may only name built-in flows, tools and components, unless `trust`. `evaluate_async` is the async
    form.
    """
    return run_blocking(
        evaluate_async(
            config=config,
            run=run,
            checkpoint=checkpoint,
            model=model,
            overrides=overrides,
            tasks=tasks,
            fields=fields,
            split=split,
            n=n,
            flow=flow,
            runs_dir=runs_dir,
            trust=trust,
            progress=progress,
        )
    )


async def evaluate_async(
    *,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    tasks: str | None = None,
    fields: Mapping[str, str] | None = None,
    split: str | None = None,
    n: int | None = None,
    flow: str | None = None,
    runs_dir: str | Path = "runs",
    trust: bool = False,
    progress: Progress | None = None,
) -> Row:
    """Async form of `evaluate`."""
    folder = None if run is None else find_run(str(run), runs_dir)
    source = find_agent(config=config, run=folder, checkpoint=checkpoint, model=model, runs_dir=runs_dir)
    sections: dict[str, Mapping[str, Any] | None] = {}
    if flow is not None:
        sections["flow"] = {"name": flow}
    whole_file = tasks is not None and is_task_file(tasks) and split is None
    if tasks is not None:
        own_seed = (source.config.get("tasks") or {}).get("seed", 0)
        sections["tasks"] = {
            "sources": [{"type": tasks, **({"split": "test"} if whole_file else {}), **(fields or {})}],
            "seed": own_seed,
        }
    elif fields:
        raise ConfigError(
            f"field names ({', '.join(fields)}) were given without tasks", "name the task file with --tasks"
        )
    elif "tasks" not in source.config:
        raise ConfigError(
            "there are no tasks to evaluate on", "give a task file or a built-in set, such as --tasks calculate"
        )
    async with InProcessGateway() as endpoint:
        parts = await asyncio.to_thread(
            load_agent, source, overrides, sections=sections, trust=trust, endpoint=endpoint
        )
        return await _evaluate(parts, source, split or "test", n, progress)


async def _evaluate(
    parts: TrainingContext, source: AgentSource, split: str, n: int | None, progress: Progress | None
) -> Row:
    from midstream.learn.data.samples import sample_row
    from midstream.rewards.summary import summarise

    tasks = _chosen(parts, split, n)
    done = 0
    began = time.perf_counter()

    def report() -> None:
        if progress is not None:
            progress(done, len(tasks), parts.engine.tokens_sampled / max(time.perf_counter() - began, 1e-9))

    def count(_: Trajectory) -> None:
        nonlocal done
        done += 1
        report()

    async def watch() -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            report()

    watcher = asyncio.create_task(watch())
    try:
        trajectories = await parts.evaluate(tasks, "eval", channel=split, on_done=count)
    finally:
        watcher.cancel()
    elapsed = time.perf_counter() - began
    succeeded = parts.reward.succeeded
    decode = parts.tokenizer.decode
    return {
        "label": source.name,
        "split": split,
        "tasks": parts.tasks.name,
        **summarise(trajectories, succeeded, parts.config.reward.classes),
        "tokens": parts.engine.tokens_sampled,
        "tokens_per_s": parts.engine.tokens_sampled / elapsed,
        "time_s": elapsed,
        "samples": [{"task": t.task.id, **sample_row(source.name, 0, t, succeeded(t), decode)} for t in trajectories],
    }


def _chosen(parts: TrainingContext, split: str, n: int | None) -> list[Task]:
    from midstream.tasks import check, take
    from midstream.tasks.taskset import shortage

    size = parts.tasks.size(split)
    check(parts.tasks, [split])
    if n is None:
        # For an unbounded set, use as many tasks as the run's own evaluations.
        n = size if size is not None else parts.config.trainer.test_tasks or DEFAULT_TASKS
    elif short := shortage(parts.tasks, split, n):
        _log.warning("%s", short)
    return take(parts.tasks, split, n)
