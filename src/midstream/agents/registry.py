"""Agent flows by name: `@register("name")`, or a YAML list of `name` and `_target_`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from midstream.agents.config import FlowConfig, RoleConfig
from midstream.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from midstream.agents.base import AgentFlowBase

F = TypeVar("F", bound="type[AgentFlowBase]")

_FLOWS: dict[str, type[AgentFlowBase]] = {}
_BUILT_IN = {
    "agentflow": "midstream.agents.agentflow.flow",
    "single_step_single_turn_agent": "midstream.agents.simple",
    "multi_step_agent": "midstream.agents.simple",
    "coordinator": "midstream.agents.team.coordinator",
    "handoff": "midstream.agents.team.handoff",
    "peers": "midstream.agents.team.peers",
    "simulated_user": "midstream.agents.team.simulated_user",
    "react": "midstream.agents.react.flow",
    "plan_and_execute": "midstream.agents.plan_and_execute.flow",
    "autonomous": "midstream.agents.autonomous.flow",
    "autogpt": "midstream.agents.autonomous.flow",
    "blackbox_gsm8k_agent": "midstream.agents.black_box",
    "blackbox_command_agent": "midstream.agents.black_box",
    "environment_agent": "midstream.agents.environment",
    "plan_scheduler": "midstream.agents.scheduling.flow",
    "verifiers_agent": "midstream.agents.verifiers.flow",
}


def register(name: str) -> Callable[[F], F]:
    """Register an agent flow as `name`. A class with the same qualified name (a reloaded module) replaces it.

    Raises `ConfigError` when another class has the name."""

    def decorate(flow: F) -> F:
        known = _FLOWS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (flow.__module__, flow.__qualname__):
            raise ConfigError(
                f"an agent flow named '{name}' is already registered: {known.__module__}.{known.__qualname__}",
                "choose another name",
            )
        _FLOWS[name] = flow
        return flow

    return decorate


def offer(name: str, module: str) -> None:
    """Let `name` be found in `module`, which registers it when it is first asked for: for flows of packages that this
    one must not import. Raises `ConfigError` when the name is taken."""
    if _BUILT_IN.setdefault(name, module) != module:
        raise ConfigError(f"an agent flow named '{name}' is already offered by {_BUILT_IN[name]}")


def is_registered(name: str) -> bool:
    """Whether `name` is a built-in flow or registered in this process. Imports nothing."""
    return name in _FLOWS or name in _BUILT_IN


def find_flow(name: str) -> type[AgentFlowBase]:
    """The flow registered as `name`, or named by `package.module:Class`."""
    if name not in _FLOWS and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name in _FLOWS:
        return _FLOWS[name]
    if ":" in name:
        return _imported(name.replace(":", "."), name)
    raise ConfigError(
        f"no agent flow '{name}'",
        f"{nearest(name, {*_FLOWS, *_BUILT_IN})} One registered in a script of yours: name it as module:Class",
    )


def with_frozen_roles(flow: FlowConfig) -> FlowConfig:
    """Return `flow` with the engine `frozen` for those roles that its class keeps frozen and the config does not
    mention, or gives neither an engine nor `train`."""
    roles = dict(flow.roles)
    for role in find_flow(flow.name).frozen:
        own = roles.get(role) or RoleConfig()
        if own.engine == "policy" and own.train is None:
            roles[role] = own.model_copy(update={"engine": "frozen", "train": False})
    return flow if roles == flow.roles else flow.model_copy(update={"roles": roles})


def load_flows(path: str | Path) -> list[str]:
    """Register the flows a YAML file lists (`- name: ...` with `_target_: package.module.Class`); returns their
    names."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read agent flows from '{path}': {error}") from None
    if not isinstance(entries, list):
        raise ConfigError(f"'{path}' must hold a list", "of entries with `name` and `_target_`")
    names: list[str] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or set(entry) != {"name", "_target_"}:
            raise ConfigError(f"entry {number} of '{path}' must have exactly `name` and `_target_`", f"got: {entry!r}")
        if not all(isinstance(value, str) for value in entry.values()):
            raise ConfigError(f"`name` and `_target_` of entry {number} of '{path}' must be text", f"got: {entry!r}")
        _FLOWS[entry["name"]] = _imported(entry["_target_"], f"entry {number} of '{path}'")
        names.append(entry["name"])
    return names


def _imported(target: str, where: str) -> type[AgentFlowBase]:
    from midstream.agents.base import AgentFlowBase

    module, _, attribute = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import '{target}': {error}", "is its module on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, AgentFlowBase)):
        raise ConfigError(f"{where}: '{target}' is not a subclass of AgentFlowBase")
    return found
