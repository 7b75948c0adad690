"""The adapters of a run: their names, and which role samples with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from midstream.agents.config import RoleConfig
from midstream.agents.registry import find_flow
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.core.types import Trajectory
from midstream.engines.publication import POLICY
from midstream.learn.config import TrainConfig


@dataclass(frozen=True, slots=True)
class RunAdapters:
    """Names of the adapters, the default first, and the name of each role's. After full tuning there is one name, that
    of the whole model."""

    names: tuple[str, ...] = (POLICY,)
    by_role: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def several(self) -> bool:
        return len(self.names) > 1

    def of_role(self, role: str) -> str:
        """Return the adapter of `role`; the default for an unknown one."""
        return self.by_role.get(role, self.names[0])

    def assign(self, group: Sequence[Trajectory]) -> list[Trajectory]:
        """Name the adapter of each step of trajectories that were recorded elsewhere: the one that sampled it, if this
        run trains that, else the one of the step's role. Needed only where there are several."""
        return [self._assigned(trajectory) for trajectory in group] if self.several else list(group)

    def _assigned(self, trajectory: Trajectory) -> Trajectory:
        if all(step.adapter in self.names for step in trajectory.steps if step.trainable):
            return trajectory
        steps = (
            replace(step, adapter=self.of_role(step.role))
            if step.trainable and step.adapter not in self.names
            else step
            for step in trajectory.steps
        )
        return replace(trajectory, steps=tuple(steps))


def adapters_of(config: TrainConfig) -> RunAdapters:
    """Return the adapters of a run. Raises `ConfigError` for one that no role uses or trains, and for an
    unknown flow. Flows of `flow.flows_file` must be registered."""
    flow, default = config.flow, config.policy.adapter
    if not any(role.adapter for role in flow.roles.values()):
        return RunAdapters((default,))
    kind = find_flow(flow.name)
    settings = parse_config(kind.settings, flow.settings, f"flow.settings of '{flow.name}'")
    shared = flow.roles.get("policy") or RoleConfig()
    roles = {role: flow.roles.get(role, shared) for role in kind.roles_for(settings)}
    by_role = {role: own.adapter or default for role, own in roles.items() if own.engine == "policy"}
    names = sorted(dict.fromkeys(by_role.values()), key=lambda name: name != default)
    for name in names:
        users = [role for role, adapter in by_role.items() if adapter == name]
        if all(roles[role].train is False for role in users):
            raise ConfigError(
                f"the adapter '{name}' is used by {', '.join(users)}, and none of these roles is trained",
                f"set flow.roles.{users[0]}.engine=frozen, or train one of them",
            )
    for role, own in {**roles, "policy": shared}.items():
        if own.adapter and own.adapter not in names:
            raise ConfigError(f"flow.roles.{role}.adapter: no role of the flow '{flow.name}' samples with it")
    if (fallback := shared.adapter or default) in names:
        by_role.setdefault("policy", fallback)
    return RunAdapters(tuple(names) or (default,), by_role)
