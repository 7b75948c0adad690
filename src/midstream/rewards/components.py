"""Reward components: functions that receive arguments by parameter name and measure one aspect of a trajectory.

A component takes any of `task`, `trajectory`, `answer` (the prediction, or None), `reference` (the task's answer),
`question`, `steps`, `tool_calls`, `judge` (a model that scores, see `judge.Judge`), `preference` (a
`preference.PreferenceModel`). It is sync or async and returns a number, None (does not apply), or `StepRewards`. A
component with the parameter `group` receives all trajectories of one prompt and returns a number or None for each; it
may otherwise take only `judge`. A component only measures; its weight in the config sets its value.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from midstream.core.errors import ConfigError, nearest
from midstream.core.types import Step, Task, ToolCall, Trajectory

F = TypeVar("F", bound=Callable[..., Any])

PARAMETERS = (
    "task",
    "trajectory",
    "answer",
    "reference",
    "question",
    "steps",
    "tool_calls",
    "judge",
    "preference",
    "group",
)


@dataclass(frozen=True, slots=True)
class StepRewards:
    """Values of a component by step, one for each step of the trajectory; None where it does not apply.

    The value for the trajectory is their sum, or None when no step has one.
    """

    values: tuple[float | None, ...]

    def __init__(self, values: Iterable[float | None]) -> None:
        object.__setattr__(self, "values", tuple(values))

    @property
    def total(self) -> float | None:
        applied = [value for value in self.values if value is not None]
        return math.fsum(applied) if applied else None


@dataclass(frozen=True, slots=True)
class Component:
    """A named component function and its parameters."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]

    @property
    def scores_group(self) -> bool:
        """Whether it scores all trajectories of a group together."""
        return "group" in self.parameters

    def arguments(self, trajectory: Trajectory, judge: Any = None, preference: Any = None) -> dict[str, Any]:
        """Return the function's arguments for one trajectory."""
        task = trajectory.task
        everything = {
            "task": task,
            "trajectory": trajectory,
            "answer": trajectory.answer,
            "reference": task.answer,
            "question": task.question,
            "steps": trajectory.steps,
            "tool_calls": trajectory.tool_calls,
            "judge": judge,
            "preference": preference,
        }
        return {name: everything[name] for name in self.parameters}


_registered: dict[str, Component] = {}


def component(name: str) -> Callable[[F], F]:
    """Register a function as the reward component `name`. Raises `ConfigError` for an unknown parameter."""

    def register(function: F) -> F:
        _registered[name] = _component(name, function)
        return function

    return register


def components() -> dict[str, Component]:
    """Return all registered components by name."""
    return dict(_registered)


def resolve(name: str) -> Component:
    """Return the component `name`: a registered one, a function `package.module:function`, or a recorded component
    `given.NAME`."""
    if name in _registered:
        return _registered[name]
    if name.startswith("given."):
        return _component(name, lambda trajectory: given_by_name(trajectory).get(name.removeprefix("given.")))
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ConfigError(f"no reward component '{name}'", nearest(name, _registered))
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"reward component '{name}': {error}", "the module must be importable from here") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"reward component '{name}': no such function", nearest(function_name, functions))
    return _component(name, function)


def given_by_name(trajectory: Trajectory) -> Mapping[str, Any]:
    """Return the recorded rewards of a trajectory: the total as `given`, and components by name."""
    given = trajectory.metadata.get("given", trajectory.rewards)
    return given if isinstance(given, Mapping) else {}


def _component(name: str, function: Callable[..., Any]) -> Component:
    asked = tuple(inspect.signature(function).parameters)
    for parameter in asked:
        if parameter not in PARAMETERS:
            raise ConfigError(
                f"reward component '{name}' asks for '{parameter}', which does not exist",
                nearest(parameter, PARAMETERS),
            )
    if "group" in asked and not {"group", "judge"} >= set(asked):
        raise ConfigError(
            f"reward component '{name}' asks for 'group' and for {', '.join(sorted({*asked} - {'group', 'judge'}))}",
            "read it from the trajectories of the group",
        )
    return Component(name, function, asked)


def at_calls(
    steps: Sequence[Step], tool_calls: Sequence[ToolCall], values: Sequence[float | None]
) -> StepRewards | float | None:
    """Put `values`, one per tool call, on the steps that made the calls. Returns their sum when a call has no step."""
    applied = [(call, value) for call, value in zip(tool_calls, values, strict=True) if value is not None]
    if not applied:
        return None
    position_of = {step.step_index: position for position, step in enumerate(steps)}
    on_steps: list[float | None] = [None] * len(steps)
    for call, value in applied:
        position = None if call.step_index is None else position_of.get(call.step_index)
        if position is None:
            return math.fsum(value for _, value in applied)
        on_steps[position] = (on_steps[position] or 0.0) + value
    return StepRewards(on_steps)


def needs_of(task: Task) -> list[str] | None:
    """Return the tools the task needs, in order; None when it does not list them."""
    needs = task.metadata.get("needs")
    return None if needs is None else list(needs)
