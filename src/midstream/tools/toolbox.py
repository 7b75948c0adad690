"""`Toolbox`: the tools of all trajectories and their policies. `session` opens them for one trajectory.

Sessions of a toolbox share statistics, circuit breakers and the recording, but not budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.errors import ConfigError, nearest
from midstream.core.toolsets import Toolset, ToolSpec
from midstream.tools.config import Budget, PolicyConfig, ToolUseConfig
from midstream.tools.declare import Tool
from midstream.tools.policies import (
    ApprovalToolset,
    Approve,
    Breaker,
    BreakerToolset,
    BudgetToolset,
    FallbackToolset,
    GuardToolset,
    RecordedCalls,
    RecordingToolset,
    ReplayToolset,
    RetryToolset,
    StatisticsToolset,
    ToolStatistics,
)
from midstream.tools.selection import select

if TYPE_CHECKING:
    from midstream.tools.session import ToolSession

MIN_RESULT_CHARS = 80


@dataclass(frozen=True)
class ToolsetFactory:
    """`make` returns the toolset of one trajectory, which opens and closes it. `specs` are the tools that are known
    before it is opened."""

    make: Callable[[], Toolset]
    specs: Sequence[ToolSpec] = ()


@dataclass(frozen=True)
class Toolbox:
    """`tools` are functions; `toolsets` create the toolsets that each trajectory opens.

    `max_calls` limits a trajectory's calls, `max_result_chars` the length of a result. `mask` is, by tool name, the
    share of a result that a session with a `mask_seed` hides. `approve` decides about calls that need approval; without
    it they are refused."""

    tools: Sequence[Tool[..., Any]] = ()
    max_calls: int | None = None
    max_result_chars: int = 2000
    mask: Mapping[str, float] = field(default_factory=dict)
    use: ToolUseConfig = field(default_factory=ToolUseConfig)
    toolsets: Sequence[ToolsetFactory] = ()
    approve: Approve | None = None
    statistics: dict[str, ToolStatistics] = field(default_factory=dict, init=False)
    """By tool name, over all sessions."""
    breakers: dict[str, Breaker] = field(default_factory=dict, init=False)
    recording: RecordedCalls | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two tools are named '{twice[0]}'", "rename one with @tool(name=...)")
        if self.max_calls is not None and self.max_calls < 0:
            raise ConfigError(f"max_calls must not be negative, not {self.max_calls}")
        if self.max_result_chars < MIN_RESULT_CHARS:
            raise ConfigError(f"max_result_chars must be at least {MIN_RESULT_CHARS}, not {self.max_result_chars}")
        for name, ratio in self.mask.items():
            if name not in names and not self.toolsets:
                raise ConfigError(
                    f"results of the tool '{name}' are to be masked, but it is not there", nearest(name, names)
                )
            if not 0 <= ratio <= 1:
                raise ConfigError(f"the share of the results of '{name}' to mask is from 0 to 1, not {ratio}")
        recording = None
        if self.use.replay is not None:
            recording = RecordedCalls(self.use.replay, replay=True)
        elif self.use.record is not None:
            recording = RecordedCalls(self.use.record, replay=Path(self.use.record).exists())
        object.__setattr__(self, "recording", recording)

    def get(self, name: str) -> ToolSpec | None:
        """Return the known tool with this name, or None."""
        return next((tool for tool in self.known if tool.name == name), None)

    @property
    def known(self) -> list[ToolSpec]:
        """The tools that are known before any toolset is opened."""
        return [*self.tools, *(spec for toolset in self.toolsets for spec in toolset.specs)]

    def session(self, mask_seed: int | None = None) -> ToolSession:
        """Return the tools of one trajectory, with a full budget. `mask_seed` determines the words of results that
        `mask` hides; None hides none."""
        from midstream.tools.session import ToolSession

        return ToolSession(self, mask_seed)

    def budget(self) -> Budget:
        """Limits of one trajectory over all tools."""
        limits = [limit for limit in (self.max_calls, self.use.budget.calls) if limit is not None]
        return self.use.budget.model_copy(update={"calls": min(limits, default=None)})

    def chain(self, tools: Toolset) -> tuple[FallbackToolset, BudgetToolset]:
        """Return the wrappers of one trajectory around `tools`: the outermost one, and the budget."""
        attempted: Toolset = GuardToolset(tools)
        if self.recording is not None:
            replaying = self.use.replay is not None
            attempted = (ReplayToolset if replaying else RecordingToolset)(attempted, self.recording)
        attempted = StatisticsToolset(attempted, self.statistics)
        breaker = self.use.breaker
        attempted = BreakerToolset(attempted, self.breakers, breaker.failures, breaker.open_s)
        budget = BudgetToolset(ApprovalToolset(RetryToolset(attempted), self.approve), self.budget(), self.use.budgets)
        return FallbackToolset(budget), budget

    def shown(self, tools: Sequence[ToolSpec], question: str | None) -> list[ToolSpec]:
        """Return the tools to show in a prompt about `question`."""
        return list(tools) if question is None else select(tools, question, self.use.selection)

    def card_of(self, tool: ToolSpec) -> str:
        """Return the card of `tool`, short or full as configured."""
        return tool.full_card if self.use.selection.card == "full" else tool.card

    def configured(self, tool: ToolSpec) -> ToolSpec:
        """Return `tool` with the policy changes of the config."""
        changes = self.use.policies.get(tool.name)
        return tool if changes is None else with_policy(tool, changes)

    def unknown_names(self, known: Mapping[str, ToolSpec]) -> list[str]:
        """Return names in the settings that are not among the `known` tools."""
        use = self.use
        named = {*use.policies, *use.budgets, *use.selection.always, *self.mask}
        named |= {other for tool in known.values() for other in tool.policy.fallback}
        named |= {use.default_tool} if use.default_tool is not None else set()
        return sorted(named - set(known))


def with_policy(tool: ToolSpec, changes: PolicyConfig) -> ToolSpec:
    """Return `tool` with `changes` to its policy."""
    given = changes.model_dump(exclude_none=True)
    timeout_s = given.pop("timeout_s", tool.timeout_s)
    return replace(tool, timeout_s=timeout_s, policy=replace(tool.policy, **given))
