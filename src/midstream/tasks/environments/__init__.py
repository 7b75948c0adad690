"""Environments of other projects as task sets: `tasks.sources: [{type: gymnasium, env: FrozenLake-v1}]`.

Each task names its environment in `metadata["environment"]`: `type`, `env`, `settings` and `seed`. The flow
`environment_agent` creates it from there. Each adapter needs its project's package, which the extra `environments`
installs; those of OpenEnv and verifiers have extras of their own. The latter run an agent of their own, which the flow
`verifiers_agent` plays.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from midstream.core.environments import Environment
from midstream.core.errors import ConfigError, TaskError, nearest
from midstream.tasks.taskset import TaskSet


class Adapter(Protocol):
    """Interface of an adapter module."""

    def tasks(self, env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
        """Return the task set of the environment `env`. Raises `TaskError` for an unknown name."""
        ...

    def environment(self, env: str, settings: Mapping[str, Any], seed: int) -> Environment:
        """Create an episode of `env`, determined by the seed."""
        ...


ENVIRONMENTS: dict[str, str | Adapter] = {
    "gymnasium": "midstream.tasks.environments.gymnasium_adapter",
    "openenv": "midstream.tasks.environments.openenv_adapter",
    "reasoning_gym": "midstream.tasks.environments.reasoning_gym_adapter",
    "textarena": "midstream.tasks.environments.textarena_adapter",
    "verifiers": "midstream.tasks.environments.verifiers_adapter",
}
"""Adapters by `type` of a task source: objects, or modules to import."""

OWN_EXTRA = ("openenv", "verifiers")
"""Types whose packages are in an extra of the same name."""


def register_environment(kind: str, adapter: Adapter) -> None:
    """Register environments as task sources of type `kind`. A module with the two functions is also an adapter."""
    if kind in ENVIRONMENTS and ENVIRONMENTS[kind] is not adapter:
        raise ConfigError(f"environments of type '{kind}' are already registered", "choose another name")
    ENVIRONMENTS[kind] = adapter


def environment_tasks(kind: str, env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
    """Return the tasks of environment `env` of the project `kind`."""
    return _adapter(kind).tasks(env, settings, seed)


def make_environment(named: Mapping[str, Any]) -> Environment:
    """Create the environment that a task names in `metadata["environment"]`. Raises `TaskError` for an unknown one."""
    kind, env, settings, seed = (named.get(key) for key in ("type", "env", "settings", "seed"))
    if not (isinstance(kind, str) and isinstance(env, str) and isinstance(seed, int)):
        raise TaskError(f"not an environment: {dict(named)!r}", "a task names `type`, `env` and `seed`")
    return _adapter(kind).environment(env, settings if isinstance(settings, Mapping) else {}, seed)


def _adapter(kind: str) -> Adapter:
    if kind not in ENVIRONMENTS:
        raise TaskError(f"no environments of type '{kind}'", nearest(kind, ENVIRONMENTS))
    adapter = ENVIRONMENTS[kind]
    if not isinstance(adapter, str):
        return adapter
    try:
        return cast(Adapter, importlib.import_module(adapter))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("midstream"):
            raise
        extra = kind if kind in OWN_EXTRA else "environments"
        raise TaskError(
            f"environments of type '{kind}' need the package '{error.name}'", f"pip install 'midstream[{extra}]'"
        ) from None
