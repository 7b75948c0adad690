"""Groups without a difference give way to others when asked to, and no task is drawn twice or skipped."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from midstream.core.types import Status, Task, Trajectory
from midstream.learn.algorithms.role_credit import RoleEMACredit, SharedCredit
from midstream.learn.data.collect import Collected, attempt_tasks, pass_rates
from midstream.learn.rollout_config import TrainRolloutConfig
from midstream.tasks.curriculum import InOrder, Progress


def made(
    backfill: int,
    live: set[int],
    tasks_per_step: int = 3,
    position: int = 10,
    greedy: bool = False,
    credit: SharedCredit | None = None,
) -> tuple[Collected, list[int]]:
    """Collect where only tasks at the places `live` have attempts that differ; also the places in the order drawn."""
    drawn: list[int] = []

    def get(split: str, place: int) -> Task:
        drawn.append(place)
        return Task(id=str(place), prompt="?", split="train")

    async def run(attempts: list[Any], temperature: float | None = None) -> list[Trajectory]:
        if temperature == 0:
            return [
                Trajectory(uid=a.uid, prompt_uid=a.prompt_uid, task=a.task, reward=float(a.task.id)) for a in attempts
            ]
        return [
            Trajectory(
                uid=attempt.uid,
                prompt_uid=attempt.prompt_uid,
                task=attempt.task,
                # Both attempts at task 20 failed, and one of them is worth something all the same.
                status=Status.FAILED if attempt.task.id == "20" else Status.COMPLETED,
                reward=float(int(attempt.task.id) in live | {20} and attempt.uid.endswith("0")),
            )
            for attempt in attempts
        ]

    context = SimpleNamespace(
        config=SimpleNamespace(
            rollout=TrainRolloutConfig(group_size=2, backfill=backfill),
            tasks=SimpleNamespace(curriculum=InOrder()),
            trainer=SimpleNamespace(seed=0),
            algorithm=SimpleNamespace(greedy_baseline=greedy, role_credit=credit or SharedCredit()),
        ),
        tasks=SimpleNamespace(get=get),
        reward=SimpleNamespace(succeeded=lambda trajectory: trajectory.reward == 1, scores_groups=False),
        manager=lambda store: SimpleNamespace(run=run),
    )
    collected = attempt_tasks(context, None, Progress(position), 1, tasks_per_step)  # type: ignore[arg-type]
    return asyncio.run(collected), drawn


def kept(collected: Collected) -> list[str]:
    return [group[0].task.id for group in collected.groups]


def test_without_backfill_every_group_is_kept() -> None:
    collected, drawn = made(0, live={11})
    assert kept(collected) == ["10", "11", "12"] and drawn == [10, 11, 12]
    assert (collected.progress, collected.counts) == (Progress(13), {"dropped_groups": 0})


def test_equal_rewards_of_the_team_may_differ_by_role() -> None:
    collected, drawn = made(2, live={11}, credit=RoleEMACredit())
    assert kept(collected) == ["10", "11", "12"] and drawn == [10, 11, 12]


@pytest.mark.parametrize(
    ("backfill", "live", "expected", "position"),
    [
        (2, {10, 11, 12}, ["10", "11", "12"], 13),
        (2, {11, 13, 14}, ["11", "13", "14"], 15),
        (2, {11, 14, 15}, ["11", "14", "15"], 16),
        (1, {11, 14, 15}, ["11", "14"], 15),  # rounds run out
        (3, set(), [], 22),
    ],
)
def test_flat_groups_give_way_to_the_next_tasks(backfill, live, expected, position) -> None:
    collected, drawn = made(backfill, live)
    assert kept(collected) == expected
    assert drawn == list(range(10, position)) and collected.progress.position == position
    assert collected.counts["dropped_groups"] == len(drawn) - len(expected)
    assert len(collected.trajectories) == 2 * len(drawn)
    assert len({t.uid for t in collected.trajectories}) == len(collected.trajectories)


def test_a_group_that_differs_by_what_does_not_count_gives_way_too() -> None:
    collected, _ = made(1, live={21, 22}, tasks_per_step=2, position=20)
    assert kept(collected) == ["21", "22"]


def test_a_greedy_attempt_at_each_task_is_the_baseline_of_its_group() -> None:
    collected, _ = made(1, live={10, 12, 13}, greedy=True)
    assert kept(collected) == ["10", "12", "13"]
    assert {g[0].task.id: collected.greedy[g[0].prompt_uid] for g in collected.groups} == {
        "10": 10.0,
        "12": 12.0,
        "13": 13.0,
    }
    assert made(0, live={10})[0].greedy == {}


def test_an_attempt_that_failed_or_was_not_scored_says_nothing_about_its_task() -> None:
    def one(task: str, reward: float | None, status: Status = Status.COMPLETED) -> Trajectory:
        return Trajectory(uid="u", prompt_uid="p", task=Task(id=task, prompt="?"), reward=reward, status=status)

    attempts = [one("a", 1.0), one("a", 0.0), one("a", 0.0, Status.FAILED), one("a", None), one("b", None)]
    assert pass_rates(attempts, lambda trajectory: trajectory.reward == 1) == {"a": 0.5}
