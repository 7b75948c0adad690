"""Scheduling problems: their bounds are exact, their splits do not overlap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from midstream.tasks.kitchen import schedule_kitchen
from midstream.tasks.schedule import LIMITS, OVEN, WORKER, Instance, Job, schedule, schedule_due
from midstream.tasks.schedule_search import cost_range

COOK, BAKE = {WORKER: 1}, {WORKER: 1, OVEN: 1}
SETS = (schedule, schedule_due, schedule_kitchen)


def list_schedule(jobs: Sequence[Job], order: Sequence[str]) -> dict[str, float]:
    """Ends of the jobs when, whenever something can start, the first of `order` that can does."""
    by_name = {job.name: job for job in jobs}
    now, ends, running = 0.0, dict[str, float](), dict[str, float]()
    while len(ends) < len(jobs):
        for name in order:
            used = [by_name[one].needs for one in running]
            fits = all(
                sum(needs.get(key, 0) for needs in used) + count <= LIMITS[key]
                for key, count in by_name[name].needs.items()
            )
            if name not in running and name not in ends and fits and all(one in ends for one in by_name[name].after):
                running[name] = now + by_name[name].duration
        now = min(running.values())
        for name in [name for name, end in running.items() if end == now]:
            ends[name] = running.pop(name)
    return ends


def test_bounds_of_an_instance_worked_out_by_hand() -> None:
    # Two workers: a (4) alone beside b and c (2 each) ends at 4; a after b and c at 6.
    jobs = [Job("a", 4, (), COOK), Job("b", 2, (), COOK), Job("c", 2, (), COOK)]
    assert cost_range(jobs, LIMITS, "makespan") == (4, 6)
    late = [Job("a", 2, (), BAKE, due=2), Job("b", 3, (), BAKE, due=3)]
    assert cost_range(late, LIMITS, "tardiness") == (2, 3)  # a, b: 0 + 2; b, a: 0 + 3


@pytest.mark.parametrize("make", SETS[:2])
def test_bounds_are_those_of_all_orders(make) -> None:
    compared = 0
    for index in range(12):
        instance = Instance.of(make().get("train", index).metadata["schedule"])
        if len(instance.jobs) > 5:
            continue
        names = [job.name for job in instance.jobs]
        costs = {instance.cost(list_schedule(instance.jobs, order)) for order in itertools.permutations(names)}
        # Lists are some of the orders: choices may also depend on the moment.
        assert instance.best <= min(costs) and max(costs) <= instance.worst
        assert min(costs) == instance.best
        compared += 1
    assert compared


def test_a_job_that_can_never_start_is_found() -> None:
    with pytest.raises(ValueError, match="never start"):
        cost_range([Job("a", 1, (), {OVEN: 2})], LIMITS, "makespan")


@pytest.mark.parametrize("make", SETS)
def test_tasks_are_the_same_everywhere_and_worth_scheduling(make) -> None:
    for index in range(3):
        task = make(7).get("val", index)
        assert task == make(7).get("val", index)
        instance = Instance.of(task.metadata["schedule"])
        assert instance.worst - instance.best >= 3 and task.answer == str(instance.best)
        assert all(name in {job.name for job in instance.jobs} for job in instance.jobs for name in job.after)
        assert all(job.name in task.question for job in instance.jobs)


def test_menus_of_test_never_occur_in_train() -> None:
    tasks = schedule_kitchen()
    menus = {split: {tasks.get(split, index).metadata["entity"] for index in range(8)} for split in ("train", "test")}
    assert not menus["train"] & menus["test"]


def test_hours_to_the_end_are_those_of_the_longest_chain() -> None:
    jobs = (Job("a", 2), Job("b", 3, ("a",)), Job("c", 1, ("a",)), Job("d", 4, ("b", "c")), Job("e", 1))
    instance = Instance(jobs, LIMITS, "makespan", 0, 1)
    assert instance.to_end() == {"a": 9, "b": 7, "c": 5, "d": 4, "e": 1}
