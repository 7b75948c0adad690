"""The total is the declared arithmetic, its parts are on the steps, and a failure affects only its trajectory."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, UserError
from midstream.core.failures import Failure, failure_of
from midstream.core.types import Status, Step, Task, ToolCall, Trajectory
from midstream.rewards.components import StepRewards, component
from midstream.rewards.compose import RewardConfig, RewardFunction


def a_trajectory(
    steps: int = 3, answer: str | None = "12", calls: tuple[ToolCall, ...] = (), **changes: Any
) -> Trajectory:
    task = Task(id="t1", prompt="q", answer=changes.pop("reference", 12), metadata=changes.pop("metadata", {}))
    made = tuple(
        Step(prompt_ids=(1,), response_ids=(2,), step_index=index, trajectory_uid="u", metadata=marks)
        for index, marks in enumerate(changes.pop("marks", [{}] * steps))
    )
    return Trajectory(uid="u", prompt_uid="p", task=task, steps=made, answer=answer, tool_calls=calls, **changes)


def score(trajectory: Trajectory, **config: Any) -> Trajectory:
    return asyncio.run(RewardFunction(RewardConfig(**config)).score(trajectory))


def on_steps(trajectory: Trajectory) -> list[float | None]:
    return [step.reward for step in trajectory.steps]


def a_search(step: int, query: str, error: str = "", result: str | None = None) -> ToolCall:
    found = f"about {query}" if result is None else result
    return ToolCall(
        tool="search", arguments={"q": query}, ok=not error, result=found, error_kind=error, step_index=step
    )


@component("test_by_step")
def by_step(steps: tuple[Step, ...]) -> StepRewards:
    return StepRewards([1.0, None, 2.0][: len(steps)])


@component("test_none")
def nothing() -> None:
    return None


@component("test_raises")
def raises() -> float:
    raise ZeroDivisionError("no luck")


def test_the_default_reward_is_correctness_on_the_last_step() -> None:
    scored = score(a_trajectory())
    assert (scored.reward, scored.rewards, on_steps(scored)) == (1.0, {"correctness": 1.0}, [0.0, 0.0, 1.0])
    assert score(a_trajectory(answer="112")).reward == 0.0


def test_components_are_recorded_unweighted_and_the_total_is_weighted() -> None:
    scored = score(
        a_trajectory(), components={"correctness": 2.0, "test_by_step": 0.5, "turns": -0.1, "test_none": 9.0}
    )
    assert scored.rewards == {"correctness": 1.0, "test_by_step": 3.0, "turns": 0.0, "test_none": None}
    assert scored.reward == pytest.approx(3.5)
    assert on_steps(scored) == pytest.approx([0.5, 0.0, 3.0])


def test_without_applicable_components_the_reward_is_none() -> None:
    scored = score(a_trajectory(reference=None))
    assert (scored.reward, scored.rewards, on_steps(scored)) == (None, {"correctness": None}, [None, None, None])
    assert score(a_trajectory(reference=None), components={"turns": 1.0}).reward == 0.0


def test_the_success_component_is_recorded_without_a_weight() -> None:
    function = RewardFunction(RewardConfig(components={"turns": 1.0}))
    right = asyncio.run(function.score(a_trajectory(turns=3)))
    assert right.reward == 3.0 and right.rewards["correctness"] == 1.0 and function.succeeded(right)
    wrong = asyncio.run(function.score(a_trajectory(answer="13", turns=3)))
    assert not function.succeeded(wrong)
    assert not function.succeeded(a_trajectory())  # not scored yet
    lenient = RewardFunction(RewardConfig(success="f1", success_at=0.5))
    assert lenient.succeeded(asyncio.run(lenient.score(a_trajectory(answer="about 12"))))


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMED_OUT])
def test_a_failed_trajectory_gets_the_configured_reward(status: Status) -> None:
    unscored = score(a_trajectory(status=status))
    assert (unscored.reward, unscored.rewards, on_steps(unscored)) == (None, {"correctness": None}, [None] * 3)
    scored = score(a_trajectory(status=status), failed=-1.0)
    assert (scored.reward, on_steps(scored)) == (-1.0, [0.0, 0.0, -1.0])
    assert not RewardFunction().succeeded(scored)


def test_a_component_that_raises_fails_the_trajectory_and_keeps_other_values() -> None:
    function = RewardFunction(RewardConfig(components={"correctness": 1.0, "test_raises": 1.0, "turns": 1.0}))
    scored = asyncio.run(function.score(a_trajectory()))
    assert scored.status == Status.FAILED
    assert scored.error == "reward component 'test_raises' raised ZeroDivisionError: no luck"
    assert scored.rewards == {"correctness": 1.0, "test_raises": None, "turns": 0.0}
    assert failure_of(scored) is Failure.REWARD
    assert scored.reward is None and not function.succeeded(scored)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "high", StepRewards([1.0]), StepRewards([0.0, 0.0, math.nan])])
def test_a_component_without_a_number_is_an_error_naming_component_and_task(bad: object) -> None:
    component("test_bad")(lambda: bad)
    with pytest.raises(UserError, match=r"'test_bad' returned .* for task 't1'"):
        score(a_trajectory(), components={"test_bad": 1.0})


def test_the_total_is_clipped_and_the_steps_still_add_up_to_it() -> None:
    scored = score(a_trajectory(turns=50), components={"turns": 1.0, "test_by_step": 1.0}, clip=(-1.0, 2.0))
    assert scored.reward == 2.0 and math.fsum(on_steps(scored)) == 2.0  # pyright: ignore[reportArgumentType]
    assert scored.rewards["turns"] == 50.0


def test_a_trajectory_without_steps_is_scored() -> None:
    assert score(a_trajectory(steps=0)).reward == 1.0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"preset": "seed002-3-1"}, "did you mean 'seed002-3-"),
        ({"components": {"turns": math.inf}}, "finite"),
        ({"clip": (1.0, -1.0)}, "clip must be"),
        ({"sucess": "f1"}, "did you mean 'success'"),
    ],
)
def test_an_invalid_reward_config_is_an_error(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(RewardConfig, config)


def test_an_unknown_component_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tool_cost'"):
        RewardFunction(RewardConfig(components={"tool_costs": -0.1}))
    with pytest.raises(ConfigError, match="no reward component 'accuracy'"):
        RewardFunction(RewardConfig(success="accuracy"))


PARSED, BROKEN = {"parsed": True}, {"parse_error": "no JSON"}


# Module 3-2 of the course: right +1, search +0.5, search too many -0.1, failure -1, right and well formed +2.
@pytest.mark.parametrize(
    ("trajectory", "total", "parts"),
    [
        (a_trajectory(marks=[PARSED, PARSED]), 3.0, [0.0, 3.0]),
        (a_trajectory(marks=[PARSED, BROKEN]), 1.0, [0.0, 1.0]),
        (a_trajectory(marks=[PARSED], answer="13"), 0.0, [0.0]),
        (a_trajectory(marks=[PARSED, {}], calls=(a_search(0, "a"),)), 3.5, [0.5, 3.0]),
        (a_trajectory(marks=[PARSED, {}], calls=(a_search(0, "a", "timeout"),)), 2.0, [-1.0, 3.0]),
        (a_trajectory(2, calls=(a_search(0, "a"), a_search(1, "a"))), 3.4, [0.5, 2.9]),
        (a_trajectory(2, calls=tuple(a_search(0, q) for q in "abcde")), 4.3, [1.3, 3.0]),
        (
            a_trajectory(
                marks=[BROKEN], calls=(ToolCall(tool="", arguments={}, ok=False, result="", error_kind="unparsed"),)
            ),
            0.0,
            [0.0],
        ),
    ],
)
def test_preset_3_2(trajectory: Trajectory, total: float, parts: list[float]) -> None:
    scored = score(trajectory, preset="seed002-3-2")
    assert scored.reward == pytest.approx(total)
    assert on_steps(scored) == pytest.approx(parts)


# Module 3-3: 1.0 x (+1 | -1) + 0.5 x (+0.5 | -0.5) + 0.3 x (+0.5 | -0.5) + 0.2 x (+0.2 | -0.05).
@pytest.mark.parametrize(
    ("trajectory", "total", "parts"),
    [
        (a_trajectory(marks=[PARSED, {}], calls=(a_search(0, "a"),)), 1.44, [0.25 + 0.15 + 0.04, 1.0]),
        (a_trajectory(marks=[BROKEN, {}], answer="13", calls=(a_search(0, "a", "raised"),)), -1.41, [-0.41, -1.0]),
        (a_trajectory(marks=[{}]), 1.0, [1.0]),  # no call, no format asked for: neither pays nor punishes
        (a_trajectory(marks=[PARSED, BROKEN]), 1.0, [0.125, 0.875]),
        (a_trajectory(2, calls=(a_search(0, "a"), a_search(1, "a"))), 1.015, [0.095, 0.92]),
        (a_trajectory(1, calls=(a_search(0, "a", result=" "),)), 1.14, [1.14]),
        (a_trajectory(1, calls=(a_search(0, "a"),), metadata={"needs": ["calculator"]}), 0.89, [0.89]),
        (a_trajectory(1, reference=None), None, [None]),
    ],
)
def test_preset_3_3(trajectory: Trajectory, total: float | None, parts: list[float]) -> None:
    scored = score(trajectory, preset="seed002-3-3")
    assert scored.reward == (None if total is None else pytest.approx(total))
    assert on_steps(scored) == [None if part is None else pytest.approx(part) for part in parts]


def test_a_preset_can_be_changed_by_a_weight() -> None:
    scored = score(
        a_trajectory(1), preset="seed002-3-3", components={"signed_correctness": 3.0, "turns": -1.0}, failed=0
    )
    assert scored.reward == 3.0 and {"turns", "signed_tool"} <= set(scored.rewards)


a_call = st.builds(
    ToolCall,
    tool=st.sampled_from(["search", "calculator", ""]),
    arguments=st.fixed_dictionaries({"q": st.integers(0, 3)}),
    ok=st.booleans(),
    result=st.sampled_from(["", "x", "y"]),
    error_kind=st.sampled_from(["", "unparsed", "raised"]),
    step_index=st.none() | st.integers(0, 5),
)


@given(
    marks=st.lists(st.sampled_from([{}, PARSED, BROKEN]), max_size=5),
    calls=st.lists(a_call, max_size=8).map(tuple),
    answer=st.sampled_from([None, "12", "13"]),
    needs=st.sampled_from([None, [], ["search"], ["search", "calculator"]]),
    preset=st.sampled_from([None, "seed002-3-2", "seed002-3-3"]),
    weights=st.dictionaries(
        st.sampled_from(["f1", "format", "tool_cost", "wasted_calls", "length"]), st.floats(-10, 10)
    ),
    clip=st.none() | st.just((-0.5, 0.7)),
)
def test_step_rewards_always_add_up_to_the_total(
    marks: Any, calls: Any, answer: Any, needs: Any, preset: Any, weights: Any, clip: Any
) -> None:
    trajectory = a_trajectory(marks=marks, calls=calls, answer=answer, metadata={"needs": needs})
    function = RewardFunction(RewardConfig(preset=preset, components=weights, clip=clip))
    scored = asyncio.run(function.score(trajectory))
    assert scored.error == ""
    applied = [function.weights[name] * value for name, value in scored.rewards.items() if value is not None]
    if scored.reward is None:
        assert all(weight == 0 or scored.rewards[name] is None for name, weight in function.weights.items())
        return
    total = math.fsum(applied)
    assert scored.reward == pytest.approx(total if clip is None else min(max(total, -0.5), 0.7), abs=1e-9)
    if scored.steps:
        assert math.fsum(step.reward or 0.0 for step in scored.steps) == pytest.approx(scored.reward, abs=1e-9)
    if preset == "seed002-3-3" and not weights:
        assert -1.41 - 1e-9 <= total <= 1.44 + 1e-9
    if preset == "seed002-3-2" and not weights:
        assert total <= 4.5 + 1e-9  # three paid searches at most
