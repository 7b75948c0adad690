"""The built-in components, and how custom components are found."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.errors import ConfigError
from midstream.core.types import Step, Task, ToolCall, Trajectory
from midstream.rewards.components import StepRewards, component, components, resolve
from midstream.rewards.compose import RewardConfig, RewardFunction


def a_step(index: int, tokens: int = 2, trainable: bool = True, **metadata: Any) -> Step:
    return Step(
        prompt_ids=(1,),
        response_ids=tuple(range(tokens)),
        rollout_log_probs=(-1.0,) * tokens,
        trajectory_uid="u",
        step_index=index,
        trainable=trainable,
        metadata=metadata,
    )


def a_call(tool: str, step: int | None = 0, error: str = "", **arguments: Any) -> ToolCall:
    return ToolCall(tool=tool, arguments=arguments, ok=not error, result="x", error_kind=error, step_index=step)


def a_trajectory(
    *steps: Step, calls: tuple[ToolCall, ...] = (), answer: str | None = "12", reference: Any = 12, **metadata: Any
) -> Trajectory:
    task = Task(id="t1", prompt="What is 3 * 4?", answer=reference, metadata=metadata)
    return Trajectory(uid="u", prompt_uid="p", task=task, steps=steps, tool_calls=calls, answer=answer, turns=2)


def value_of(name: str, trajectory: Trajectory) -> float | None:
    scored = asyncio.run(RewardFunction(RewardConfig(components={name: 1.0})).score(trajectory))
    assert scored.error == ""
    return scored.rewards[name]


def by_step(name: str, trajectory: Trajectory) -> list[float | None]:
    return [
        step.reward
        for step in asyncio.run(RewardFunction(RewardConfig(components={name: 1.0})).score(trajectory)).steps
    ]


def test_answers_are_graded_and_a_missing_reference_is_not_a_zero() -> None:
    for name in ("correctness", "exact_match", "f1", "numeric", "math"):
        assert value_of(name, a_trajectory()) == 1.0
        assert value_of(name, a_trajectory(answer="112")) == 0.0
        assert value_of(name, a_trajectory(answer=None)) == 0.0
        assert value_of(name, a_trajectory(reference=None)) is None
    assert value_of("numeric", a_trajectory(reference="Paris")) is None
    assert value_of("correctness", a_trajectory(answer="12.0")) == 1.0
    assert value_of("exact_match", a_trajectory(answer="12.0")) == 0.0
    assert value_of("f1", a_trajectory(answer="the cat sat", reference="cat sat down")) == pytest.approx(0.8)
    assert value_of("math", a_trajectory(answer=r"$\sqrt{144}$")) == 1.0
    assert value_of("math", a_trajectory(answer=r"$\frac{24}{2}$")) == 0.0


def test_format_is_the_share_of_steps_that_parsed() -> None:
    parsed, failed, free = a_step(0, parsed=True), a_step(1, parse_error="no JSON"), a_step(2)
    assert value_of("format", a_trajectory(parsed, failed, free)) == 0.5
    assert value_of("format", a_trajectory(failed, free)) == 0.0
    assert value_of("format", a_trajectory(parsed, free)) == 1.0
    assert value_of("format", a_trajectory(a_step(0, parsed=True, parse_error=""))) == 1.0
    assert value_of("format", a_trajectory(free)) == 1.0
    assert value_of("format", a_trajectory()) is None


def test_tool_calls_are_counted_on_their_steps() -> None:
    calls = (a_call("search", 0, q="a"), a_call("search", 1, "raised", q="b"), a_call("", 1, "unparsed"))
    trajectory = a_trajectory(a_step(0), a_step(1), a_step(2), calls=calls)
    assert value_of("tool_success", trajectory) == pytest.approx(1 / 3)
    assert value_of("tool_success", a_trajectory(a_step(0))) is None
    assert value_of("tool_cost", trajectory) == 2.0
    assert by_step("tool_cost", trajectory) == [1.0, 1.0, 0.0]
    assert value_of("tool_cost", a_trajectory(a_step(0))) == 0.0
    placeless = a_trajectory(a_step(0), a_step(1), calls=(a_call("search", None), a_call("search", 7)))
    assert by_step("tool_cost", placeless) == [0.0, 2.0]


def test_repeated_and_excess_calls_are_wasted() -> None:
    once, again, more = a_call("search", 0, q="a"), a_call("search", 1, q="a"), a_call("search", 2, q="b")
    steps = (a_step(0), a_step(1), a_step(2))
    assert value_of("wasted_calls", a_trajectory(*steps, calls=(once,), needs=["search"])) == 0.0
    assert value_of("wasted_calls", a_trajectory(*steps, calls=(once, again, more), needs=["search"])) == 2.0
    assert by_step("wasted_calls", a_trajectory(*steps, calls=(once, again, more), needs=["search"])) == [0.0, 1.0, 1.0]
    assert value_of("wasted_calls", a_trajectory(*steps, calls=(once, again, more), needs=["search", "search"])) == 1.0
    assert value_of("wasted_calls", a_trajectory(*steps, calls=(once,), needs=[])) == 1.0
    assert value_of("wasted_calls", a_trajectory(*steps, calls=(), needs=[])) == 0.0
    assert value_of("wasted_calls", a_trajectory(*steps, calls=(once,))) is None


@pytest.mark.parametrize(
    ("called", "share"),
    [
        (["search", "calculator"], 1.0),
        (["search", "echo", "calculator"], 1.0),
        (["calculator", "search"], 0.5),
        (["calculator", "search", "calculator"], 1.0),
        (["search"], 0.5),
        (["search", "search"], 0.5),
        (["search", "!calculator"], 0.5),
        (["echo"], 0.0),
        ([], 0.0),
    ],
)
def test_the_right_tools_in_the_right_order(called: list[str], share: float) -> None:
    calls = tuple(a_call(tool.lstrip("!"), 0, "raised" if tool[0] == "!" else "") for tool in called)
    assert value_of("right_tool", a_trajectory(a_step(0), calls=calls, needs=["search", "calculator"])) == share
    assert value_of("right_tool", a_trajectory(a_step(0), calls=calls, needs=[])) is None
    assert value_of("right_tool", a_trajectory(a_step(0), calls=calls)) is None


def test_turns_and_length() -> None:
    trajectory = a_trajectory(a_step(0, tokens=3), a_step(1, tokens=5, trainable=False), a_step(2, tokens=4))
    assert value_of("turns", trajectory) == 2.0
    assert value_of("length", trajectory) == 7.0
    assert by_step("length", trajectory) == [3.0, 0.0, 4.0]
    assert value_of("length", a_trajectory(a_step(0, tokens=5, trainable=False))) == 5.0
    assert value_of("length", a_trajectory()) is None


def test_every_built_in_component_has_a_docstring() -> None:
    assert {"correctness", "format", "tool_success", "turns", "right_tool"} <= set(components())
    assert all(one.function.__doc__ for one in components().values() if one.function.__module__.startswith("midstream"))


def test_a_component_gets_its_arguments_by_parameter_name() -> None:
    seen: dict[str, object] = {}

    @component("nosy")
    async def nosy(
        question: str, steps: object, answer: str, reference: object, task: Task, trajectory: object
    ) -> float:
        seen.update(locals())
        await asyncio.sleep(0)
        return 0.25

    trajectory = a_trajectory(a_step(0))
    assert value_of("nosy", trajectory) == 0.25
    assert seen["question"] == "What is 3 * 4?" and seen["task"] is trajectory.task and seen["answer"] == "12"
    assert seen["steps"] == trajectory.steps and seen["reference"] == 12 and seen["trajectory"] is trajectory


def test_a_component_with_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match="asks for 'refrence'") as raised:

        @component("misspelt")
        def misspelt(refrence: str) -> float:
            return 0.0

    assert "did you mean 'reference'?" in raised.value.hint
    assert "misspelt" not in components()


def test_components_are_found_by_name_or_by_path() -> None:
    assert resolve("midstream.rewards.builtin:turns").function is resolve("turns").function
    with pytest.raises(ConfigError, match="did you mean 'correctness'"):
        resolve("corectness")
    with pytest.raises(ConfigError, match="must be importable"):
        resolve("no_such_module:reward")
    with pytest.raises(ConfigError, match="did you mean 'turns'"):
        resolve("midstream.rewards.builtin:turn")


def test_step_rewards_add_up_where_they_applied() -> None:
    assert StepRewards([1, None, 0.5]).total == 1.5
    assert StepRewards([None, None]).total is None
    assert StepRewards([]).total is None
