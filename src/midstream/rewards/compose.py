"""The reward of a trajectory: components as they were, and a total that is declared arithmetic over them.

total = sum of weight x value over the components that applied, clipped when asked. A component that did not apply adds
nothing; when none applied there is no total.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from midstream.core.config import Config
from midstream.core.errors import UserError, nearest
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.rewards import builtin as _builtin  # noqa: F401  registers the built-in components
from midstream.rewards import feedback as _feedback  # noqa: F401
from midstream.rewards.components import Component, StepRewards, resolve
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
    """The reward of a trajectory that failed or timed out; null leaves it without one."""

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
        return weights if self.success in weights else {**weights, self.success: 0.0}


class RewardFunction:
    """Scores trajectories as `config` says. Raises `ConfigError` for a component that is not there."""

    def __init__(self, config: RewardConfig | None = None) -> None:
        self.config = config or RewardConfig()
        self.weights = self.config.weights
        self._components: dict[str, Component] = {name: resolve(name) for name in self.weights}

    async def score(self, trajectory: Trajectory) -> Trajectory:
        """`trajectory` with its components in `rewards`, their total in `reward`, and each step's part on the step.

        What a component says of a step lands there, everything else on the last step; the parts add up to the total. A
        failed or timed-out trajectory is not looked at: it gets `config.failed`. A component that raises fails the
        trajectory; one that returns no finite number is a `UserError`, as it would fail them all.
        """
        rewards: dict[str, float | None] = {}
        if trajectory.status in (Status.FAILED, Status.TIMED_OUT):
            return self._without_score(trajectory, dict.fromkeys(self.weights))
        on_steps = [0.0] * len(trajectory.steps)
        parts: list[float] = []
        for name, weight in self.weights.items():
            try:
                value = self._components[name].function(**self._components[name].arguments(trajectory))
                if inspect.isawaitable(value):
                    value = await value
            except UserError:
                raise
            except Exception as error:  # a user's function: whatever it raises costs this trajectory only
                told = f"reward component '{name}' raised {type(error).__name__}: {error}"
                failed = replace(trajectory, status=Status.FAILED, error=told)
                return self._without_score(failed, dict.fromkeys(self.weights) | rewards)
            rewards[name], by_step = _checked(name, trajectory, value)
            if rewards[name] is not None and weight != 0:
                parts.append(weight * (rewards[name] or 0.0))
                on_steps = [sum_ + weight * (part or 0.0) for sum_, part in zip(on_steps, by_step, strict=True)]
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
        return _scored(trajectory, rewards, self.config.failed, [0.0] * len(trajectory.steps))


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
