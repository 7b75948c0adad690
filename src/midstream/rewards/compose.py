"""The reward of a trajectory: components as they were, and a total that is declared arithmetic over them.

total = sum of weight x value over the components that applied, clipped when asked. A component that did not apply adds
nothing; when none applied there is no total.
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
from midstream.core.failures import Failure, because, failure_of
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.rewards import builtin as _builtin  # noqa: F401  registers the built-in components
from midstream.rewards import feedback as _feedback  # noqa: F401
from midstream.rewards import grounding as _grounding  # noqa: F401
from midstream.rewards.calls import Called, call, is_outage
from midstream.rewards.components import Component, StepRewards, resolve
from midstream.rewards.judge import Judge, JudgeConfig
from midstream.rewards.preference import PreferenceModel
from midstream.rewards.presets import PRESETS

Normalize = Literal["none", "group", "batch", "running"]


class RewardConfig(Config):
    """What a trajectory is worth."""

    preset: str | None = None
    """A named set of components and weights: `seed002-3-2` or `seed002-3-3`."""

    components: dict[str, float] = Field(default_factory=dict)
    """Weight by component: a registered name, or `package.module:function`. Added to the preset's, or in place of them.
    With neither a preset nor components, the reward is `correctness`."""

    success: str = "correctness"
    """The component that says whether a trajectory succeeded. It is recorded even where it has no weight."""

    success_at: float = 1.0
    """The least value of that component that is a success."""

    failed: float | None = None
    """The reward of a trajectory whose agent failed or timed out; null leaves it without one. One that failed because
    of infrastructure or of a reward component never has a reward."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Wall time one component may take over one trajectory. One that takes longer fails the trajectory."""

    judge: JudgeConfig | None = None
    """The model behind the components `judge` and `judge_pairwise`, and others that ask for one."""

    preference: str | None = None
    """File of the model behind the component `preference`, as `midstream store fit-preference` writes it."""

    clip: tuple[float, float] | None = None
    """The range the total is cut to: [lowest, highest]."""

    normalize: Normalize = "none"
    """What training makes of the total, once it is cut: (reward - mean) / (std + 1e-8), with mean and standard
    deviation over its `group`, over the `batch` of a step, or over all rewards of the run so far (`running`). Rewards
    are recorded and logged as they were."""

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
        """Weight by component, preset included; `success` at 0 where nothing else names it."""
        weights = {**PRESETS.get(self.preset or "", {}), **self.components} or {"correctness": 1.0}
        observed = [self.success]
        if "judge" in weights and self.judge is not None:
            observed.append(self.judge.compare_with)
        return {**dict.fromkeys(observed, 0.0), **weights} if set(observed) - set(weights) else weights


class RewardFunction:
    """Scores trajectories as `config` says, with `judge` for the components that ask for one.

    Raises `ConfigError` for a component that is not there, or that asks for a judge where there is none.
    """

    def __init__(self, config: RewardConfig | None = None, judge: Judge | None = None) -> None:
        self.config = config or RewardConfig()
        self.weights = self.config.weights
        self.judge = judge
        self._components: dict[str, Component] = {name: resolve(name) for name in self.weights}
        self._preference = None if self.config.preference is None else PreferenceModel.load(self.config.preference)
        for name, its in self._components.items():
            if "preference" in its.parameters and self._preference is None:
                raise ConfigError(
                    f"reward component '{name}' needs a preference model, and there is none",
                    "set reward.preference to a file that midstream store fit-preference wrote",
                )
            if "judge" in its.parameters and judge is None:
                raise ConfigError(
                    f"reward component '{name}' needs a judge, and there is none",
                    "set reward.judge.engine to frozen, or to the URL of an OpenAI-compatible server",
                )

    @property
    def of_groups(self) -> bool:
        """Whether some component scores groups: `score_group` is to follow `score`."""
        return any(component.of_group for component in self._components.values())

    def alone(self) -> RewardFunction:
        """This function, for where trajectories are scored one at a time; raises `ConfigError` when some component
        needs the whole group."""
        for name, its in self._components.items():
            if its.of_group:
                raise ConfigError(
                    f"reward component '{name}' compares the trajectories of a group, and here each is scored alone",
                    "leave it out here, and let the trainer score what was recorded",
                )
        return self

    async def score(self, trajectory: Trajectory) -> Trajectory:
        """`trajectory` with its components in `rewards`, their total in `reward`, and each step's part on the step.

        Components run side by side, sync ones in threads, each for at most `config.timeout_s`. What one says of a step
        lands there, everything else on the last step; the parts add up to the total. A failed or timed-out trajectory
        is not looked at: it gets `config.failed`. A component that raises or is late fails the trajectory, which then
        has no reward: that says nothing about the attempt. Where a service could not be reached, the failure is one of
        infrastructure. A component that returns no finite number is a `UserError`, as it would fail them all.
        """
        if trajectory.status in (Status.FAILED, Status.TIMED_OUT):
            return self._without_score(trajectory, dict.fromkeys(self.weights))
        alone = {name: its for name, its in self._components.items() if not its.of_group}
        called = await asyncio.gather(
            *(self._call(its, its.arguments(trajectory, self.judge, self._preference)) for its in alone.values())
        )
        values: dict[str, tuple[float | None, Sequence[float | None]]] = {}
        failures: list[tuple[str, Failure, BaseException | None]] = []
        for name, made in zip(alone, called, strict=True):
            if made.error is None:
                values[name] = _checked(name, trajectory, made.value)
            else:
                failures.append(self._failure(name, made))
        rewards: dict[str, float | None] = {name: values.get(name, (None,))[0] for name in self.weights}
        if failures:
            # An outage says nothing about the attempt, so it counts before what else went wrong.
            why, cause, raised = min(failures, key=lambda failure: failure[1] is not Failure.INFRASTRUCTURE)
            failed = replace(trajectory, status=Status.FAILED, error=why)
            return self._without_score(because(failed, cause, raised), rewards)
        return self._total(trajectory, rewards, {name: parts for name, (_, parts) in values.items()})

    async def score_group(self, group: Sequence[Trajectory]) -> list[Trajectory]:
        """The trajectories of one prompt, scored by `score` before, with what the components of groups say of them too.

        Trajectories that failed take no part. A component of groups that fails, fails those that took part.
        """
        whole = list(group)
        for name, its in self._components.items():
            places = [place for place, one in enumerate(whole) if one.status is Status.COMPLETED]
            if not its.of_group or not places:
                continue
            part = [whole[place] for place in places]
            arguments = {"group": part, "judge": self.judge}
            made = await self._call(its, {asked: arguments[asked] for asked in its.parameters})
            if made.error is not None:
                why, cause, raised = self._failure(name, made)
                for place, one in zip(places, part, strict=True):
                    failed = because(replace(one, status=Status.FAILED, error=why), cause, raised)
                    whole[place] = self._without_score(failed, dict(one.rewards))
                continue
            if not isinstance(made.value, Sequence) or len(made.value) != len(part):
                raise _bad(name, part[0].task, f"{made.value!r:.100} for a group of {len(part)}")
            for place, one, value in zip(places, part, made.value, strict=True):
                rewards = {**one.rewards, name: _number(name, one.task, value)}
                own = {name: [None] * len(one.steps) for name in rewards}
                scored = self._total(one, rewards, own)
                if scored.reward is not None:
                    scored = _scored(one, rewards, scored.reward, [step.reward or 0.0 for step in one.steps])
                whole[place] = scored
        return whole

    async def _call(self, component: Component, arguments: Mapping[str, Any]) -> Called:
        return await call(component.function, arguments, self.config.timeout_s)

    def _failure(self, name: str, made: Called) -> tuple[str, Failure, BaseException | None]:
        """What failed a trajectory, who is to blame, and what was raised, where a traceback of it helps; raises a
        `UserError`, which would fail them all."""
        if isinstance(made.error, UserError):
            raise made.error
        outage = "judge" in self._components[name].parameters if made.late else is_outage(made.error)
        what = f"raised {type(made.error).__name__}: {made.error}"
        if made.late:
            what = f"took longer than reward.timeout_s = {self.config.timeout_s:g} s"
        cause = Failure.INFRASTRUCTURE if outage else Failure.REWARD
        return f"reward component '{name}' {what}", cause, None if outage or made.late else made.error

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
        """True when a scored trajectory ended well and its `success` component reached `success_at`."""
        value = trajectory.rewards.get(self.config.success)
        ended_well = trajectory.status not in (Status.FAILED, Status.TIMED_OUT)
        return ended_well and value is not None and value >= self.config.success_at

    def _without_score(self, trajectory: Trajectory, rewards: dict[str, float | None]) -> Trajectory:
        reward = self.config.failed if failure_of(trajectory) in (None, Failure.AGENT) else None
        return _scored(trajectory, rewards, reward, [0.0] * len(trajectory.steps))


def as_given(trajectory: Trajectory) -> Trajectory:
    """`trajectory` with the reward it was recorded with, which its steps' own make up: what they leave of it belongs to
    the last one."""
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
    """What a component returned as a number and its parts by step."""
    count = len(trajectory.steps)
    if isinstance(value, StepRewards):
        if len(value.values) != count:
            raise _bad(name, trajectory.task, f"{len(value.values)} step rewards for {count} steps")
        parts = [_number(name, trajectory.task, part) for part in value.values]
        return StepRewards(parts).total, parts
    return _number(name, trajectory.task, value), [None] * count


def _number(name: str, task: Task, value: object) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]  what is not a number is refused below
    except (TypeError, ValueError):
        raise _bad(name, task, f"a {type(value).__name__}") from None
    if not math.isfinite(number):
        raise _bad(name, task, str(number))
    return number


def _bad(name: str, task: Task, what: str) -> UserError:
    return UserError(
        f"reward component '{name}' returned {what} for task '{task.id}'",
        "return a finite number, None when it does not apply, or StepRewards with one value a step",
    )
