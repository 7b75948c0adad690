"""Environments of verifiers by their ids, loaded once per process."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.utils.loaders import default_harness_id, load_environment, resolve_env_config

from midstream.agents.verifiers.harness import HARNESS
from midstream.core.errors import ConfigError

SHELL = "bash"
"""The default harness of verifiers, which gives the model a shell on this machine."""

_loaded: dict[str, Any] = {}
_loading = threading.Lock()


def load_env(env: str, settings: Mapping[str, Any]) -> Any:
    """The environment of the taskset `env`. Raises `ConfigError` when its settings are wrong.

    Agents for which neither the settings nor the taskset's package name a harness get ours."""
    key = f"{env} {json.dumps(settings, sort_keys=True, default=str)}"
    with _loading:
        if key not in _loaded:
            config = {**settings, "taskset": {**settings.get("taskset", {}), "id": env}}
            try:
                if default_harness_id(env) == SHELL:
                    config |= _with_our_harness(config)
                _loaded[key] = load_environment(resolve_env_config(config))
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                reason = str(error)[:1000]
                raise ConfigError(f"verifiers cannot load the environment '{env}': {reason}") from None
        return _loaded[key]


def _with_our_harness(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of each agent, with our harness where they name none, which needs no remote machine."""
    agents = agent_config_fields(resolve_env_config(config))
    ours = {"harness": {"id": HARNESS}, "runtime": {"type": "subprocess"}}
    return {name: {**({} if "harness" in config.get(name, {}) else ours), **config.get(name, {})} for name in agents}
