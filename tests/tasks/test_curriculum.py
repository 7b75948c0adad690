"""Curricula draw the intended tasks, deterministically from seed, step and progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Task
from midstream.tasks import FiniteTaskSet, TasksConfig, TaskSourceConfig, load_tasks
from midstream.tasks.curriculum import Curriculum, DifficultyPools, InOrder, Kinds, Progress, Ramp, Seen, difficulty_of

MIX = load_tasks(parse_config(TasksConfig, {"sources": [{"type": "calculate"}, {"type": "two_hop"}]}))


def finite(size: int, **metadata: Any) -> FiniteTaskSet:
    """A finite set of tasks in one split."""
    given = {name: values for name, values in metadata.items()}
    tasks = [
        Task(id=f"t{n}", prompt="?", metadata={name: values[n] for name, values in given.items()}) for n in range(size)
    ]
    return FiniteTaskSet("own", tasks)


def ids(tasks: list[Task]) -> list[str]:
    return [task.id for task in tasks]


def order(taskset: Any, count: int, start: int = 0) -> list[str]:
    return [taskset.get("train", place).id for place in range(start, start + count)]


def steps(curriculum: Curriculum, taskset: Any, count: int, each: int, rate: Any, seed: int = 0) -> list[list[str]]:
    """The ids drawn in each of `count` steps, if task `id` is solved at the rate `rate(id)`."""
    progress, found = Progress(), []
    for step in range(1, count + 1):
        tasks, progress = curriculum.draw(taskset, progress, each, seed=seed, step=step)
        progress = curriculum.observed(progress, {task.id: rate(task.id) for task in tasks})
        found.append(ids(tasks))
    return found


@pytest.mark.parametrize("taskset", [finite(5), MIX])
def test_without_a_curriculum_tasks_are_drawn_in_order_without_state(taskset) -> None:
    tasks, progress = InOrder().draw(taskset, Progress(3), 4, seed=9, step=2, drawn=["x"])
    assert (ids(tasks), progress) == (order(taskset, 4, 3), Progress(7))
    assert InOrder().observed(progress, {tasks[0].id: 1.0}) == progress
    assert TasksConfig.model_validate({"sources": [{"type": "direct"}]}).curriculum == InOrder()


@pytest.mark.parametrize(
    ("rates", "pool"),
    [
        ((), ""),
        ((0.0,), "hard"),
        ((0.24,), "hard"),
        ((0.25,), "normal"),
        ((0.75,), "normal"),
        ((0.76,), "easy"),
        ((1.0,), "solved"),
        ((1.0, 0.5), "normal"),
        ((1.0, 1.0), "solved"),
    ],
)
def test_the_pool_of_a_task_depends_on_the_mean_over_its_last_groups(rates: tuple[float, ...], pool: str) -> None:
    assert DifficultyPools().pool_of(Seen(0, rates)) == pool


def test_only_the_last_groups_of_a_task_count() -> None:
    pools = DifficultyPools(groups=2)
    _, progress = pools.draw(finite(1), Progress(), 1, seed=0, step=1)
    for rate in (0.0, 0.5, 1.0, 1.0):
        progress = pools.observed(progress, {"t0": rate, "of another run": 0.0})
    assert progress.seen == {"t0": Seen(0, (1.0, 1.0))}
    assert pools.metrics(progress, 1) == {"pool/hard": 0, "pool/normal": 0, "pool/easy": 0, "pool/solved": 1}


def test_without_shares_pools_follow_the_order_and_skip_solved_tasks() -> None:
    taskset, pools = finite(6), DifficultyPools(hard=0, normal=0, easy=0, solved=0)
    first, *later = steps(pools, taskset, 7, 3, lambda name: float(name in ("t0", "t1")))
    assert first == order(taskset, 3)
    unsolved = [name for name in order(taskset, 6) if name not in ("t0", "t1")]
    drawn = Counter(name for step in later[1:] for name in step)  # once around, all are known
    assert set(drawn) == set(unsolved)
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_each_pool_gets_its_share_of_the_draws() -> None:
    rates = {"calculate": 0.5, "two_hop": 0.0}
    pools = DifficultyPools(hard=0.2, normal=0.3, easy=0.0)
    seen: dict[str, float] = {}
    again = Counter[str]()
    for step in steps(pools, MIX, 200, 10, lambda name: rates[name.rsplit("-")[0]]):
        for name in step:
            if name in seen:
                again["hard" if seen[name] == 0 else "normal"] += 1
        seen |= {name: rates[name.rsplit("-")[0]] for name in step}
    # two_hop is finite and also repeats in its order, so only the share of the unbounded set is exact.
    assert again["normal"] / 2000 == pytest.approx(0.3, abs=0.03)
    assert again["hard"] / 2000 > 0.17


def test_when_all_tasks_are_solved_the_order_continues() -> None:
    taskset = finite(4)
    assert steps(DifficultyPools(), taskset, 3, 2, lambda _: 1.0) == [
        order(taskset, 2),
        order(taskset, 2, 2),
        order(taskset, 2),
    ]


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 6))
def test_no_task_is_drawn_twice_per_step_while_others_are_left(seed: int, each: int, rounds: int) -> None:
    taskset, pools = finite(12), DifficultyPools(hard=0.4, normal=0.2, easy=0.2, solved=0.2)
    progress = Progress()
    for step in range(1, rounds + 1):
        drawn: list[str] = []
        for _ in range(2):  # a step and its backfill
            tasks, progress = pools.draw(taskset, progress, each, seed=seed, step=step, drawn=drawn)
            drawn += ids(tasks)
        assert len(set(drawn)) == len(drawn) == 2 * each
        progress = pools.observed(progress, {name: int(name[1:]) % 5 / 4 for name in drawn})


def test_draws_depend_only_on_seed_step_and_progress() -> None:
    def rate(name: str) -> float:
        return (len(name) + int(name[-1], 16)) % 5 / 4

    pools = DifficultyPools(hard=0.3, normal=0.3, easy=0.2)
    once = steps(pools, MIX, 12, 4, rate)
    assert steps(pools, MIX, 12, 4, rate) == once != steps(pools, MIX, 12, 4, rate, seed=1)


def test_an_unbounded_set_does_not_exhaust_memory(monkeypatch) -> None:
    monkeypatch.setattr("midstream.tasks.curriculum.REMEMBERED", 5)
    progress, pools = Progress(), DifficultyPools(hard=0, normal=0, easy=0)
    for step in range(1, 4):
        tasks, progress = pools.draw(MIX, progress, 3, seed=0, step=step)
        progress = pools.observed(progress, {task.id: 0.0 for task in tasks})
    assert list(progress.seen) == order(MIX, 5, 4)


def test_a_ramp_skips_tasks_above_its_rising_ceiling() -> None:
    taskset = finite(20, difficulty=[n % 4 for n in range(20)])
    ramp = Ramp(start=0, end=3, steps=4)
    assert [ramp.ceiling(step) for step in (1, 2, 3, 4, 9)] == [0, 1, 2, 3, 3]
    progress = Progress()
    for step in range(1, 6):
        tasks, progress = ramp.draw(taskset, progress, 4, seed=0, step=step)
        assert max(difficulty_of(task) for task in tasks) <= ramp.ceiling(step)
    tasks, progress = ramp.draw(taskset, Progress(), 20, seed=0, step=4)
    assert ids(tasks) == order(taskset, 20)
    assert Ramp(start=0, end=2, steps=1).ceiling(1) == 2


def test_the_default_difficulty_is_the_number_of_needed_tools() -> None:
    ramp = Ramp(start=1, end=2, steps=10)
    tasks, _ = ramp.draw(MIX, Progress(), 10, seed=0, step=1)
    assert {task.kind for task in tasks} == {"calculate"}
    tasks, _ = ramp.draw(MIX, Progress(), 10, seed=0, step=10)
    assert {task.kind for task in tasks} == {"calculate", "two_hop"}


def test_a_ramp_without_suitable_tasks_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"as easy as tasks\.curriculum allows at step 1: 0"):
        Ramp(start=0, end=1).draw(finite(3, difficulty=[1, 2, 3]), Progress(), 1, seed=0, step=1)
    for wrong in ({}, {"difficulty": ["hard"] * 3}, {"difficulty": [True] * 3}):
        with pytest.raises(TaskError, match="has no difficulty"):
            Ramp(start=0, end=1).draw(finite(3, **wrong), Progress(), 1, seed=0, step=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "pools", "hard": 0.6, "easy": 0.6}, "add up to more than 1"),
        ({"name": "pools", "hard_below": 0.8}, "in the order hard_below, easy_above, solved_at"),
        ({"name": "ramp", "start": 3, "end": 1}, "start is above end"),
        ({"name": "ramp", "start": 3}, "curriculum.end: is required"),
        ({"name": "pool"}, "pools"),
    ],
)
def test_an_inconsistent_curriculum_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(TasksConfig, {"sources": [{"type": "direct"}], "curriculum": wrong})


def test_kinds_are_opened_one_after_the_other() -> None:
    tasks = load_tasks(TasksConfig(sources=[TaskSourceConfig(type="varied")]))
    curriculum = Kinds(order=("recall", "steps"), by="sort", groups=4, at=0.5)

    def step(progress: Progress, rates: Mapping[str, float]) -> tuple[set[str], Progress]:
        drawn, progress = curriculum.draw(tasks, progress, 12, seed=0, step=1)
        kinds = {str(task.metadata["sort"]) for task in drawn}
        return kinds, curriculum.observed(progress, {task.id: rates[str(task.metadata["sort"])] for task in drawn})

    failing = {"recall": 0.0, "steps": 0.0, "product": 0.0, "odd": 0.0}
    kinds, progress = step(Progress(), failing)
    assert "recall" in kinds and "steps" not in kinds and kinds > {"recall"}  # what `order` leaves out is open
    for _ in range(3):
        kinds, progress = step(progress, failing)
        assert "steps" not in kinds
    for _ in range(3):
        _, progress = step(progress, {**failing, "recall": 0.75})
    assert curriculum.open(tasks, progress) == ("recall", "steps")
    assert "steps" in step(progress, failing)[0]


def test_a_kind_that_no_task_has_is_named() -> None:
    tasks = load_tasks(TasksConfig(sources=[TaskSourceConfig(type="direct")]))
    with pytest.raises(TaskError, match="no task of the kinds"):
        Kinds(order=("maths", "direct")).draw(tasks, Progress(), 1, seed=0, step=1)
