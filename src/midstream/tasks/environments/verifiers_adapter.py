"""Tasksets of verifiers (v1): `env` is the id of an installed taskset, `settings` the rest of its `[env]` config.

These environments run their own agent, so they have no `reset` and `act`: the flow `verifiers_agent` plays them. The
prompt of a task determines its split; if all prompts are the same, the rest of its data does.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

from midstream.core.environments import Environment
from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Task
from midstream.tasks.taskset import TaskSet, known_split, split_of

KIND = "verifiers"
MOST_READ = 20_000
"""Tasks read from an infinite taskset for one task before its split counts as empty."""


class LoadedTaskset:
    """A taskset of verifiers, whose tasks are read on demand."""

    def __init__(self, env: str, settings: Mapping[str, Any]) -> None:
        try:
            config = taskset_config_type(env).model_validate({**settings.get("taskset", {}), "id": env})
            self.taskset: Any = load_taskset(config)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise TaskError(f"verifiers cannot load the taskset '{env}': {str(error)[:1000]}") from None
        self._rest: Iterator[Any] = iter(self.taskset)
        self._read: list[Any] = []
        self._lock = threading.Lock()

    def task(self, position: int) -> Any | None:
        """Return the task at `position`; None after the last one."""
        with self._lock:
            while len(self._read) <= position:
                task = next(self._rest, None)
                if task is None:
                    return None
                self._read.append(task)
            return self._read[position]


_loaded: dict[str, LoadedTaskset] = {}
_loading = threading.Lock()


def load(env: str, settings: Mapping[str, Any]) -> LoadedTaskset:
    """Return the taskset `env`, loaded once per process and settings. Raises `TaskError` if it cannot be loaded."""
    key = f"{env} {json.dumps(settings.get('taskset', {}), sort_keys=True, default=str)}"
    with _loading:
        if key not in _loaded:
            _loaded[key] = LoadedTaskset(env, settings)
        return _loaded[key]


def tasks(env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
    return VerifiersTasks(env, settings)


def environment(env: str, settings: Mapping[str, Any], seed: int) -> Environment:
    raise ConfigError(f"the environment '{env}' of verifiers runs its own agent", "use flow.name=verifiers_agent")


class VerifiersTasks(TaskSet):
    """The tasks of one taskset, in its order. `metadata["environment"]["seed"]` is a task's position in it."""

    def __init__(self, env: str, settings: Mapping[str, Any]) -> None:
        self.name, self.kinds = f"{KIND}:{env}", (env,)
        self._env, self._settings = env, dict(settings)
        self._loaded = load(env, settings)
        first, second = self._loaded.task(0), self._loaded.task(1)
        self._alike = first is not None and second is not None and first.data.prompt_text == second.data.prompt_text
        """Whether all tasks begin with the same text, as games do; then all their data decide the split."""
        self._positions: dict[str, list[int]] = {}
        self._next = 0

    def size(self, split: str) -> int | None:
        known_split(split)
        if not self._loaded.taskset.bounded:
            return None
        while self._advance():
            pass
        return len(self._positions.get(split, ()))

    def get(self, split: str, index: int) -> Task:
        known_split(split)
        of_split = self._positions.setdefault(split, [])
        limit = math.inf if self._loaded.taskset.bounded else self._next + MOST_READ
        while len(of_split) <= index and self._next < limit and self._advance():
            pass
        if not of_split or (len(of_split) <= index and not self._loaded.taskset.bounded):
            raise TaskError(f"'{self.name}' has no task {index} in the split '{split}'")
        position = of_split[index % len(of_split)]
        task = self._loaded.task(position)
        assert task is not None, "its position was found by reading it"
        data = task.data
        named = {"type": KIND, "env": self._env, "settings": self._settings, "seed": position}
        answer = getattr(data, "answer", None)
        return Task(
            id=f"{self.name}:{data.id or position}",
            prompt=data.prompt_text,
            answer=answer if isinstance(answer, str | int | float) else None,
            kind=self._env,
            split=split,
            metadata={"environment": named},
        )

    def _advance(self) -> bool:
        """Assign the next task to its split; return False if there is none."""
        task = self._loaded.task(self._next)
        if task is None:
            return False
        split = split_of(task.key if self._alike else task.data.prompt_text)
        self._positions.setdefault(split, []).append(self._next)
        self._next += 1
        return True
