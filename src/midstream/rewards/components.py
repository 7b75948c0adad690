"""Reward components: functions that ask for what they need by parameter name and say one thing about a trajectory.

A component takes any of `task`, `trajectory`, `answer` (the prediction, or None), `reference` (the task's answer),
`question`, `steps`, `tool_calls`, `judge` (a model that scores, see `judge.Judge`); is sync or async; and returns a
number, None (it did not apply), or `StepRewards`. One that takes `group`, the trajectories of one prompt, scores them
all at once and returns a number or None for each; beside it, it can only take `judge`.
What a component means is its own; what it is worth is its weight in the config.
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

PARAMETERS = ("task", "trajectory", "answer", "reference", "question", "steps", "tool_calls", "judge", "group")


@dataclass(frozen=True, slots=True)
class StepRewards:
    """A component's value step by step, one for each step of the trajectory; None where it did not apply.

    Its value for the trajectory is their sum, or None when it applied nowhere.
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
    """A named function with the parameters it asked for."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]

    @property
    def scores_group(self) -> bool:
        """Whether it scores the trajectories of a group together."""
        return "group" in self.parameters

    def arguments(self, trajectory: Trajectory, judge: Any = None) -> dict[str, Any]:
        """What the function asked for, of one trajectory."""
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
        }
        return {name: everything[name] for name in self.parameters}


_registered: dict[str, Component] = {}


def component(name: str) -> Callable[[F], F]:
    """Register a function as the reward component `name`. Raises `ConfigError` when it asks for what there is not."""

    def register(function: F) -> F:
        _registered[name] = _component(name, function)
        return function

    return register


def components() -> dict[str, Component]:
    """Every registered component by name."""
    return dict(_registered)


def resolve(name: str) -> Component:
    """The component registered as `name`, the function that `package.module:function` names, or for `given.NAME` the
    component NAME that trajectories come with."""
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
    """What a trajectory came with: its total as `given`, and components by name."""
    known = trajectory.metadata.get("given", trajectory.rewards)
    return known if isinstance(known, Mapping) else {}


def _component(name: str, function: Callable[..., Any]) -> Component:
    asked = tuple(inspect.signature(function).parameters)
    for parameter in asked:
        if parameter not in PARAMETERS:
            raise ConfigError(
                f"reward component '{name}' asks for '{parameter}', which there is not", nearest(parameter, PARAMETERS)
            )
    if "group" in asked and not {"group", "judge"} >= set(asked):
        raise ConfigError(
            f"reward component '{name}' asks for 'group' and for {', '.join(sorted({*asked} - {'group', 'judge'}))}",
            "take what it needs from the trajectories of the group",
        )
    return Component(name, function, asked)


def at_calls(
    steps: Sequence[Step], tool_calls: Sequence[ToolCall], values: Sequence[float | None]
) -> StepRewards | float | None:
    """`values`, one for each tool call, on the steps that asked for them; their sum where a call names no step."""
    applied = [(call, value) for call, value in zip(tool_calls, values, strict=True) if value is not None]
    if not applied:
        return None
    place = {step.step_index: position for position, step in enumerate(steps)}
    on_steps: list[float | None] = [None] * len(steps)
    for call, value in applied:
        position = None if call.step_index is None else place.get(call.step_index)
        if position is None:
            return math.fsum(value for _, value in applied)
        on_steps[position] = (on_steps[position] or 0.0) + value
    return StepRewards(on_steps)


def needs_of(task: Task) -> list[str] | None:
    """The tools the task says it takes, in order; None when it does not say."""
    needs = task.metadata.get("needs")
    return None if needs is None else list(needs)
