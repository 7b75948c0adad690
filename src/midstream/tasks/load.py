"""`TasksConfig` and `load_tasks`: task sets by name, file, import path or hub name, mixed in ratios."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.core.errors import ConfigError, TaskError, nearest
from midstream.core.seeds import derive_seed
from midstream.core.types import Task
from midstream.tasks.assorted import assorted
from midstream.tasks.calculate import calculate
from midstream.tasks.curriculum import CurriculumConfig, InOrder
from midstream.tasks.direct import direct
from midstream.tasks.environments import ENVIRONMENTS, environment_tasks
from midstream.tasks.facts import compare, facts, facts_calculate, two_hop
from midstream.tasks.files import file_tasks, hub_tasks
from midstream.tasks.kitchen import schedule_kitchen
from midstream.tasks.mix import TaskMix
from midstream.tasks.programs import programs
from midstream.tasks.row_files import ENDINGS, is_task_file
from midstream.tasks.rows import RowFields
from midstream.tasks.schedule import schedule, schedule_due
from midstream.tasks.shop import shop_bills, shop_costs, shop_orders, shop_prices
from midstream.tasks.taskset import HELD_OUT, TaskSet
from midstream.tasks.varied import varied

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_OF_FILES = ("question", "answer", "id", "kind", "split", "only", "val_share", "test_share")
"""Options that only files and hub data sets have."""

TaskSetFactory = Callable[[int], TaskSet]
"""Makes a task set from a seed, which may determine order but never splits."""

_REGISTRY: dict[str, TaskSetFactory] = {
    "assorted": assorted,
    "calculate": calculate,
    "compare": compare,
    "direct": direct,
    "facts": facts,
    "facts_calculate": facts_calculate,
    "programs": programs,
    "schedule": schedule,
    "schedule_due": schedule_due,
    "schedule_kitchen": schedule_kitchen,
    "shop_bills": shop_bills,
    "shop_costs": shop_costs,
    "shop_orders": shop_orders,
    "shop_prices": shop_prices,
    "two_hop": two_hop,
    "varied": varied,
}


class TaskSourceConfig(Config):
    """One source of tasks. The options below `ratio` are for files and hub data sets."""

    type: str
    """A built-in or registered set (`calculate`, `facts`, ...), the path of a task file (`.jsonl`, `.jsonl.gz`, `.csv`,
    `.parquet`), `package.module:attribute` (a `TaskSet`, or a function from a seed to one), a data set on the hub
    (`owner/name`), or a project whose environment `env` names (`gymnasium`, `openenv`, `reasoning_gym`, `textarena`,
    `verifiers`)."""
    ratio: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of the mix, relative to the other sources."""
    reshuffle: bool = False
    """Shuffle the training tasks of a finite set anew each time all of them were drawn; else their order repeats."""
    question: str | None = None
    """Field with the question; detected by common names if not given."""
    answer: str | None = None
    """Field with the answer, or the list of accepted answers."""
    id: str | None = None
    """Field with the id of a task."""
    kind: str | None = None
    """`kind` of the tasks; the file's name without suffix if not given."""
    split: Literal["train", "val", "test"] | None = None
    """Put every task of the file into this split. Otherwise by the field `split`, else by hash of the question."""
    only: dict[str, str] | None = None
    """Use only rows with these values of fields, such as `{problem_type: math}`."""
    val_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the tasks that the hash puts into `val`; 0.1 when not given."""
    test_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the tasks that the hash puts into `test`; 0.1 when not given. A task in `test` stays there when this
    grows."""
    subset: str | None = None
    """Subset of a hub data set, such as `main`."""
    env: str | None = None
    """Environment of another project: its name there, or the address of an OpenEnv server."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the environment, as its project names them."""

    @model_validator(mode="after")
    def _some_to_train_on(self) -> TaskSourceConfig:
        val, test = self.shares
        if val + test >= 1:
            raise ValueError(f"val_share and test_share add up to {val + test:g}, which leaves no task to train on")
        return self

    @property
    def shares(self) -> tuple[float, float]:
        """`val_share` and `test_share`, with their defaults."""
        val, test = self.val_share, self.test_share
        return HELD_OUT if val is None else val, HELD_OUT if test is None else test


class TasksConfig(Config):
    """Tasks for training and evaluation."""

    sources: list[TaskSourceConfig] = Field(default_factory=list[TaskSourceConfig])
    """Sources of tasks. None are needed to train on data in a store (`rollout.source`)."""
    seed: int = 0
    """Determines the order of tasks and the draws of generators. Splits do not depend on it."""
    curriculum: CurriculumConfig = InOrder()
    """Which training task is attempted next."""


def register_tasks(name: str) -> Callable[[TaskSetFactory], TaskSetFactory]:
    """Register a function from a seed to a `TaskSet` by name: `@register_tasks("riddles")`."""

    def register(factory: TaskSetFactory) -> TaskSetFactory:
        if name in _REGISTRY and _REGISTRY[name] is not factory:
            raise ConfigError(f"a task set named '{name}' is already registered", "choose another name")
        _REGISTRY[name] = factory
        return factory

    return register


def load_tasks(config: TasksConfig) -> TaskSet:
    """Return the task set of a config: the source itself if there is one, else their `TaskMix`."""
    if not config.sources:
        return Nothing()
    loaded = [
        (Reshuffled(taskset, config.seed) if source.reshuffle else taskset, source.ratio)
        for source in config.sources
        for taskset in [_load(source, config.seed)]
    ]
    return loaded[0][0] if len(loaded) == 1 else TaskMix(loaded)


class Reshuffled(TaskSet):
    """A task set whose finite split `train` is shuffled anew on each further pass."""

    def __init__(self, tasks: TaskSet, seed: int) -> None:
        self.name, self.kinds = tasks.name, tasks.kinds
        self._tasks, self._seed = tasks, seed
        self._orders: dict[int, list[int]] = {}

    def size(self, split: str) -> int | None:
        return self._tasks.size(split)

    def get(self, split: str, index: int) -> Task:
        size = self._tasks.size(split)
        if split != "train" or not size or index < size:
            return self._tasks.get(split, index)
        number, place = divmod(index, size)
        if number not in self._orders:
            order = list(range(size))
            Random(derive_seed(self._seed, self.name, "pass", number)).shuffle(order)
            self._orders = {number: order}  # passes are drawn one after another
        return self._tasks.get(split, self._orders[number][place])


class Nothing(TaskSet):
    """An empty task set."""

    name, kinds = "none", ()

    def size(self, split: str) -> int:
        return 0

    def get(self, split: str, index: int) -> Task:
        raise TaskError("there are no tasks", "name some in tasks.sources")


def is_imported(name: str) -> bool:
    """Whether a source of type `name` is code to import: `package.module:attribute`."""
    return ":" in name and name not in _REGISTRY and not _is_file(name)


def _is_file(name: str) -> bool:
    # An existing path is never a hub name.
    return is_task_file(name) or Path(name).expanduser().exists()


def _load(source: TaskSourceConfig, seed: int) -> TaskSet:
    val, test = source.shares
    fields = RowFields(
        question=source.question,
        answer=source.answer,
        id=source.id,
        split=source.split,
        val_share=val,
        test_share=test,
    )
    if source.type in ENVIRONMENTS:
        _refuse(source, *_OF_FILES, "subset")
        if source.env is None:
            raise ConfigError(f"task source '{source.type}' names no environment", "add `env`, such as FrozenLake-v1")
        return environment_tasks(source.type, source.env, source.settings, seed)
    if source.env is not None or source.settings:
        raise ConfigError(
            f"task source '{source.type}' has no environments",
            f"`env` and `settings` go with the types {', '.join(ENVIRONMENTS)}",
        )
    if source.type in _REGISTRY:
        _refuse(source, *_OF_FILES, "subset")
        return _REGISTRY[source.type](seed)
    if _is_file(source.type):
        _refuse(source, "subset")
        return file_tasks(Path(source.type).expanduser(), fields, source.kind, seed, source.only)
    if is_imported(source.type):
        _refuse(source, *_OF_FILES, "subset")
        return _imported(source.type, seed)
    if _HUB_NAME.fullmatch(source.type):
        _refuse(source, "only")
        return hub_tasks(source.type, source.subset, fields, source.kind, seed)
    others = f"a task file ({', '.join(ENDINGS)}), package.module:attribute, or a hub name owner/name"
    hint = f"{nearest(source.type, [*_REGISTRY, *ENVIRONMENTS])} Or {others}"
    raise ConfigError(f"unknown task set '{source.type}'", hint)


def _imported(path: str, seed: int) -> TaskSet:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"task set '{path}' cannot be imported: {error}", "is its module on PYTHONPATH?") from error
    made = found if isinstance(found, TaskSet) or not callable(found) else found(seed)
    if not isinstance(made, TaskSet):
        raise ConfigError(f"'{path}' gives no TaskSet but: {type(made).__name__}")
    return made


def _refuse(source: TaskSourceConfig, *options: str) -> None:
    for option in options:
        if getattr(source, option) is not None:
            raise ConfigError(f"task source '{source.type}' takes no option `{option}`", "remove it")
