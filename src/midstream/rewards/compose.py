"""Composes the reward of a trajectory from its components.

total = sum of weight x value over the components that apply, clipped if configured. A component that does not apply
adds nothing; when none applies, there is no total.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from midstream.core.config import Config
from midstream.core.errors import ConfigError, UserError, nearest
from midstream.core.failures import Failure, failure_of, with_failure
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.rewards import builtin as _builtin  # noqa: F401  registers the built-in components
from midstream.rewards import feedback as _feedback  # noqa: F401
from midstream.rewards import grounding as _grounding  # noqa: F401
from midstream.rewards import workflows as _workflows  # noqa: F401
from midstream.rewards.calls import CallResult, call_with_timeout, is_outage
from midstream.rewards.components import Component, StepRewards, resolve
from midstream.rewards.judge import Judge, JudgeConfig
from midstream.rewards.preference import PreferenceModel
from midstream.rewards.presets import PRESETS

Normalize = Literal["none", "group", "batch", "running"]


class RewardConfig(Config):
    """The reward of a trajectory."""

    preset: str | None = None
    """A named set of components and weights: `seed002-3-2` or `seed002-3-3`; for policies that write workflows,
    `workflow`, `seed003-5` or `seed003-3`."""

    components: dict[str, float] = Field(default_factory=dict)
    """Weight by component: a registered name, or `package.module:function`. Extends or overrides the preset. Without a
    preset and components, the reward is `correctness`."""

    success: str = "correctness"
    """The component that defines the success of a trajectory. It is recorded even without a weight."""

    success_at: float = 1.0
    """Minimum value of that component for a success."""

    classes: tuple[str, ...] = ()
    """Labels, for tasks whose answer is one of them. Evaluations then report precision, recall and F1 by class. An
    answer that is no label misses its class."""

    failed: float | None = None
    """Reward of a trajectory whose agent failed or timed out; null means no reward. Failures of infrastructure or of a
    reward component never get a reward."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Time limit of a component for one trajectory, in seconds. Exceeding it fails the trajectory."""

    judge: JudgeConfig | None = None
    """The model used by `judge`, `judge_pairwise` and other components with a judge."""

    preference: str | None = None
    """File of the model behind the component `preference`, as `midstream store fit-preference` writes it."""

    clip: tuple[float, float] | None = None
    """Range of the total: [lowest, highest]."""

    normalize: Normalize = "none"
    """Normalization of the clipped total for training: (reward - mean) / (std + 1e-8), with statistics over the
    `group`, the `batch` of a training step, or all rewards of the run so far (`running`). Recorded and logged rewards
    are not normalized."""

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"no reward preset '{preset}'; {nearest(preset, PRESETS)}")
        return preset

    @field_validator("components")
    @classmethod
    def _finite(cls, components: dict[str, float]) -> dict[str, float]:
        for name, weight in components.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of '{name}' must be a finite number, not {weight}")
        return components

    @model_validator(mode="after")
    def _ordered(self) -> RewardConfig:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip must be [lowest, highest], not {list(self.clip)}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight by component, including the preset; `success` has weight 0 unless set."""
        weights = {**PRESETS.get(self.preset or "", {}), **self.components} or {"correctness": 1.0}
        observed = [self.success]
        if "judge" in weights and self.judge is not None:
            observed.append(self.judge.compare_with)
        return {**dict.fromkeys(observed, 0.0), **weights} if set(observed) - set(weights) else weights


class RewardFunction:
    """Scores trajectories with `config`, and with `judge` for components that need one.

    Raises `ConfigError` for an unknown component, or one that needs a missing judge.
    """

    def __init__(self, config: RewardConfig | None = None, judge: Judge | None = None) -> None:
        self.config = config or RewardConfig()
        self.weights = self.config.weights
        self.judge = judge
        self._components: dict[str, Component] = {name: resolve(name) for name in self.weights}
        self._preference = None if self.config.preference is None else PreferenceModel.load(self.config.preference)
        for name, component in self._components.items():
            if "preference" in component.parameters and self._preference is None:
                raise ConfigError(
                    f"reward component '{name}' needs a preference model, but none is configured",
                    "set reward.preference to a file written by midstream store fit-preference",
                )
            if "judge" in component.parameters and judge is None:
                raise ConfigError(
                    f"reward component '{name}' needs a judge, but none is configured",
                    "set reward.judge.engine to frozen, or to the URL of an OpenAI-compatible server",
                )

    @property
    def scores_groups(self) -> bool:
        """Whether a component scores groups, so that `score_group` must follow `score`."""
        return any(component.scores_group for component in self._components.values())

    def single_trajectory(self) -> RewardFunction:
        """Return this function for scoring single trajectories. Raises `ConfigError` when a component needs the whole
        group."""
        for name, component in self._components.items():
            if component.scores_group:
                raise ConfigError(
                    f"reward component '{name}' compares the trajectories of a group, but each is scored alone here",
                    "remove it here, and let the trainer score the recorded trajectories",
                )
        return self

    async def score(self, trajectory: Trajectory) -> Trajectory:
        """Return `trajectory` with components in `rewards`, total in `reward`, and each step's part on the step.

        Components run concurrently, sync ones in threads, each for at most `config.timeout_s`. Step values stay on
        their steps and all others go to the last step; the parts add up to the total. A failed or timed-out trajectory
        is not scored and gets `config.failed`. A component that raises or times out fails the trajectory, which then
        has no reward, as it says nothing about the attempt. A component that returns no finite number raises a
        `UserError`, because it would fail every trajectory. An unreachable service is an infrastructure failure.
        """
        if trajectory.status in (Status.FAILED, Status.TIMED_OUT):
            return self._without_score(trajectory, dict.fromkeys(self.weights))
        single = {name: component for name, component in self._components.items() if not component.scores_group}
        results = await asyncio.gather(
            *(
                self._call(component, component.arguments(trajectory, self.judge, self._preference))
                for component in single.values()
            )
        )
        values: dict[str, tuple[float | None, Sequence[float | None]]] = {}
        failures: list[tuple[str, Failure, BaseException | None]] = []
        for name, result in zip(single, results, strict=True):
            if result.error is None:
                values[name] = _checked(name, trajectory, result.value)
            else:
                failures.append(self._failure(name, result))
        rewards: dict[str, float | None] = {name: values.get(name, (None,))[0] for name in self.weights}
        if failures:
            # An outage takes precedence over other failures, because it says nothing about the attempt.
            problem, cause, raised = min(failures, key=lambda failure: failure[1] is not Failure.INFRASTRUCTURE)
            failed = replace(trajectory, status=Status.FAILED, error=problem)
            return self._without_score(with_failure(failed, cause, raised), rewards)
        return self._total(trajectory, rewards, {name: parts for name, (_, parts) in values.items()})

    async def score_group(self, group: Sequence[Trajectory]) -> list[Trajectory]:
        """Add group components to trajectories of one prompt that `score` has already scored.

        Failed trajectories are left out. A failing group component fails all other trajectories.
        """
        trajectories = list(group)
        for name, component in self._components.items():
            indices = [index for index, one in enumerate(trajectories) if one.status is Status.COMPLETED]
            if not component.scores_group or not indices:
                continue
            completed = [trajectories[index] for index in indices]
            arguments = {"group": completed, "judge": self.judge}
            result = await self._call(
                component, {parameter: arguments[parameter] for parameter in component.parameters}
            )
            if result.error is not None:
                problem, cause, raised = self._failure(name, result)
                for index, one in zip(indices, completed, strict=True):
                    failed = with_failure(replace(one, status=Status.FAILED, error=problem), cause, raised)
                    trajectories[index] = self._without_score(failed, dict(one.rewards))
                continue
            if not isinstance(result.value, Sequence) or len(result.value) != len(completed):
                raise _invalid(name, completed[0].task, f"{result.value!r:.100} for a group of {len(completed)}")
            for index, one, value in zip(indices, completed, result.value, strict=True):
                rewards = {**one.rewards, name: _number(name, one.task, value)}
                by_step = {name: [None] * len(one.steps) for name in rewards}
                scored = self._total(one, rewards, by_step)
                if scored.reward is not None:
                    scored = _scored(one, rewards, scored.reward, [step.reward or 0.0 for step in one.steps])
                trajectories[index] = scored
        return trajectories

    async def _call(self, component: Component, arguments: Mapping[str, Any]) -> CallResult:
        return await call_with_timeout(component.function, arguments, self.config.timeout_s)

    def _failure(self, name: str, result: CallResult) -> tuple[str, Failure, BaseException | None]:
        """Return the error message, the cause, and the exception when its traceback helps. Raises a `UserError`, which
        would fail every trajectory."""
        if isinstance(result.error, UserError):
            raise result.error
        outage = "judge" in self._components[name].parameters if result.timed_out else is_outage(result.error)
        problem = f"raised {type(result.error).__name__}: {result.error}"
        if result.timed_out:
            problem = f"took longer than reward.timeout_s = {self.config.timeout_s:g} s"
        cause = Failure.INFRASTRUCTURE if outage else Failure.REWARD
        return f"reward component '{name}' {problem}", cause, None if outage or result.timed_out else result.error

    def _total(
        self,
        trajectory: Trajectory,
        rewards: dict[str, float | None],
        by_step: Mapping[str, Sequence[float | None]],
    ) -> Trajectory:
        on_steps = [0.0] * len(trajectory.steps)
        parts: list[float] = []
        for name, weight in self.weights.items():
            value = rewards[name]
            if value is None or weight == 0:
                continue
            parts.append(weight * value)
            on_steps = [sum_ + weight * (part or 0.0) for sum_, part in zip(on_steps, by_step[name], strict=True)]
        if not parts:
            return _scored(trajectory, rewards, None, [])
        total = math.fsum(parts)
        if self.config.clip is not None:
            total = min(max(total, self.config.clip[0]), self.config.clip[1])
        return _scored(trajectory, rewards, total, on_steps)

    def succeeded(self, trajectory: Trajectory) -> bool:
        """Return whether a scored trajectory completed and its `success` component reached `success_at`."""
        value = trajectory.rewards.get(self.config.success)
        ended_well = trajectory.status not in (Status.FAILED, Status.TIMED_OUT)
        return ended_well and value is not None and value >= self.config.success_at

    def _without_score(self, trajectory: Trajectory, rewards: dict[str, float | None]) -> Trajectory:
        reward = self.config.failed if failure_of(trajectory) in (None, Failure.AGENT) else None
        return _scored(trajectory, rewards, reward, [0.0] * len(trajectory.steps))


def with_recorded_reward(trajectory: Trajectory) -> Trajectory:
    """Return `trajectory` with its recorded reward, split over steps as recorded; the last step gets the remainder."""
    own = [step.reward or 0.0 for step in trajectory.steps]
    return _scored(trajectory, dict(trajectory.rewards), trajectory.reward, own)


def _scored(
    trajectory: Trajectory, rewards: dict[str, float | None], total: float | None, on_steps: list[float]
) -> Trajectory:
    steps: Sequence[Step] = trajectory.steps
    if total is None:
        steps = [replace(step, reward=None) for step in steps]
    elif steps:
        on_steps = [*on_steps[:-1], total - math.fsum(on_steps[:-1])]
        steps = [replace(step, reward=part) for step, part in zip(steps, on_steps, strict=True)]
    return replace(trajectory, steps=tuple(steps), rewards=rewards, reward=total)


def _checked(name: str, trajectory: Trajectory, value: object) -> tuple[float | None, Sequence[float | None]]:
    """Return a component's value as a number and its parts by step."""
    count = len(trajectory.steps)
    if isinstance(value, StepRewards):
        if len(value.values) != count:
            raise _invalid(name, trajectory.task, f"{len(value.values)} step rewards for {count} steps")
        parts = [_number(name, trajectory.task, part) for part in value.values]
        return StepRewards(parts).total, parts
    return _number(name, trajectory.task, value), [None] * count


def _number(name: str, task: Task, value: object) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]  non-numbers are rejected below
    except (TypeError, ValueError):
        raise _invalid(name, task, f"a {type(value).__name__}") from None
    if not math.isfinite(number):
        raise _invalid(name, task, str(number))
    return number


def _invalid(name: str, task: Task, what: str) -> UserError:
    return UserError(
        f"reward component '{name}' returned {what} for task '{task.id}'",
        "return a finite number, None when it does not apply, or StepRewards with one value per step",
    )
