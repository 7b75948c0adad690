"""A role chooses which node of a plan starts: only among those that can, and what it chose is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from math import fsum
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import World, do, plan

from midstream.agents.scheduling.policy import RolePolicy, chat_with
from midstream.core.errors import ConfigError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, Status, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.plans import AgentExecutor
from midstream.record.recorder import Recorder, RoleEngine
from midstream.rewards import RewardFunction
from midstream.rewards.compose import RewardConfig
from midstream.rollouts import Attempt
from midstream.tasks import TaskSet
from midstream.tasks.kitchen import schedule_kitchen
from midstream.tasks.schedule import Instance, schedule, schedule_due


def allowed(constraint: Constraint | None) -> list[str]:
    """The names that a reply may be."""
    assert constraint is not None and constraint.kind == "lark"
    return [json.loads(one) for one in constraint.grammar.removeprefix("start: ").split(" | ")]


def run(
    make_worker: Any, says: Callable[[Request], str], tasks: TaskSet, index: int = 0, **settings: Any
) -> Trajectory:
    score = RewardFunction(RewardConfig(components={"schedule": 1.0}, success="schedule")).score
    worker = make_worker(says, "plan_scheduler", settings=settings, worker={"score": score})
    return asyncio.run(worker.run(Attempt(task=tasks.get("train", index), uid="u", prompt_uid="p", seed=1)))


def last(request: Request) -> str:
    return allowed(request.constraint)[-1]


def instance(trajectory: Trajectory) -> Instance:
    return Instance.of(trajectory.task.metadata["schedule"])


@pytest.mark.parametrize("make", [schedule, schedule_due, schedule_kitchen])
def test_the_role_is_asked_about_jobs_that_can_start_and_its_choice_starts(make_worker, make) -> None:
    asked: list[tuple[list[str], str]] = []

    def says(request: Request) -> str:
        assert request.role == "scheduler"
        asked.append((allowed(request.constraint), str(request.messages[-1]["content"])))
        return asked[-1][0][-1]

    trajectory = run(make_worker, says, make())
    problem, made = instance(trajectory), trajectory.metadata["schedule"]
    assert trajectory.status is Status.COMPLETED and len(made["ends"]) == len(problem.jobs)
    assert [choice["feasible"] for choice in made["choices"]] == [names for names, _ in asked]
    assert [choice["started"] for choice in made["choices"]] == [names[-1] for names, _ in asked]
    starts = {job.name: made["ends"][job.name] - job.duration for job in problem.jobs}
    for job in problem.jobs:
        assert all(made["ends"][name] <= starts[job.name] for name in job.after)
        for resource, units in problem.limits.items():
            beside = [one for one in problem.jobs if starts[one.name] <= starts[job.name] < made["ends"][one.name]]
            assert sum(one.needs.get(resource, 0) for one in beside) <= units
    for names, shown in asked:
        assert len(names) > 1 and all(f"{name}:" in shown for name in names)


def test_a_choice_has_the_log_probability_of_its_tokens(make_worker) -> None:
    trajectory = run(make_worker, last, schedule())
    choices = trajectory.metadata["schedule"]["choices"]
    assert len(trajectory.steps) == len(choices) > 1
    for choice in choices:
        step = trajectory.steps[choice["step_index"]]
        assert choice["log_prob"] == fsum(step.rollout_log_probs or ()) and step.text == choice["started"]
        assert step.role == "scheduler" and step.trainable


def test_the_reward_is_between_the_worst_and_the_best_schedule(make_worker) -> None:
    for index in range(4):
        trajectory = run(make_worker, last, schedule(), index)
        problem, cost = instance(trajectory), trajectory.metadata["schedule"]["cost"]
        assert problem.best <= cost <= problem.worst and trajectory.answer == f"{cost:g}"
        assert trajectory.reward == (problem.worst - cost) / (problem.worst - problem.best)


def test_a_reply_that_is_no_name_starts_what_became_ready_first(make_worker) -> None:
    trajectory = run(make_worker, lambda request: "whatever", schedule())
    assert trajectory.status is Status.COMPLETED
    for choice in trajectory.metadata["schedule"]["choices"]:
        assert choice["started"] == choice["feasible"][0] and choice["unreadable"] == "whatever"


@pytest.mark.parametrize("choose", ["first", "random", "longest"])
def test_policies_to_compare_with_ask_nobody(make_worker, choose) -> None:
    trajectories = [run(make_worker, last, schedule(), index, choose=choose) for index in (0, 1)]
    assert all(one.steps == () and one.reward is not None for one in trajectories)
    for choice in (one for each in trajectories for one in each.metadata["schedule"]["choices"]):
        assert choose != "first" or choice["started"] == choice["feasible"][0]
    if choose == "longest":
        to_end = instance(trajectories[0]).to_end()
        for choice in trajectories[0].metadata["schedule"]["choices"]:
            assert to_end[choice["started"]] == max(to_end[name] for name in choice["feasible"])
    again = run(make_worker, last, schedule(), choose=choose)
    assert again.metadata["schedule"] == trajectories[0].metadata["schedule"]


def test_only_names_are_told_when_asked(make_worker) -> None:
    shown: list[str] = []

    def says(request: Request) -> str:
        shown.append(str(request.messages[-1]["content"]))
        return last(request)

    run(make_worker, says, schedule_kitchen(), tell="names")
    assert shown and not any(character.isdigit() for text in shown for character in text)


def test_runs_are_kept_in_a_journal(make_worker, tmp_path: Path) -> None:
    trajectory = run(make_worker, last, schedule(), journal=str(tmp_path / "plans.sqlite"))

    async def choices() -> list[Any]:
        async with AgentExecutor(tmp_path / "plans.sqlite") as executor:
            events = [event async for event in executor.events(trajectory.metadata["schedule"]["run"])]
            return [event.data for event in events if event.kind == "choice" and event.data.get("metadata")]

    kept, noted = asyncio.run(choices()), trajectory.metadata["schedule"]["choices"]
    assert [one["log_prob"] for one in kept] == [one["log_prob"] for one in noted]
    assert [one["metadata"] for one in kept] == [{"trajectory": "u", "step_index": i} for i in range(len(noted))]
    # What is masked is not feasible, and has no name in the constraint.
    for one, step in zip(kept, trajectory.steps, strict=True):
        assert one["feasible"][one["index"]]
        feasible = [name for name, can_start in zip(one["ready"], one["feasible"], strict=True) if can_start]
        assert step.text in feasible


def test_other_tasks_are_refused(make_worker, attempt) -> None:
    worker = make_worker(last, "plan_scheduler")
    with pytest.raises(ConfigError, match="no jobs to schedule"):
        asyncio.run(worker.run(attempt()))


def test_the_policy_schedules_any_plan(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    asked: list[Request] = []

    def says(request: Request) -> str:
        asked.append(request)
        return last(request)

    engine = RoleEngine(ScriptedEngine(tiny_tokenizer, says), tiny_tokenizer, False)
    recorder = Recorder("deployed", "deployed", seed=0)
    policy = RolePolicy(chat_with(engine, recorder, SamplingParams(max_tokens=8)))
    world, gate = World(), {"gate": 1}
    nodes = (do("a", resources=gate), do("b", resources=gate), do("c"), do("d", "b"))

    async def main(executor: Any) -> list[Any]:
        await executor.run(plan(*nodes, limits=gate), uid="r")
        return [event.data async for event in executor.events("r") if event.kind == "choice"]

    choices = world.using(tmp_path, main, policy=policy, max_concurrency=2)
    assert sorted(world.did) == ["a", "b", "c", "d"]
    assert allowed(asked[0].constraint) == ["a", "b", "c"] and asked[0].role == "scheduler"
    assert all(f"{name}: do" in str(one.messages[-1]["content"]) for one in asked for name in allowed(one.constraint))
    made = [one for one in choices if "metadata" in one]
    assert [one["metadata"] for one in made] == [
        {"trajectory": "deployed", "step_index": step.step_index} for step in recorder.finished()
    ]
    assert [one["log_prob"] for one in made] == [fsum(step.rollout_log_probs or ()) for step in recorder.finished()]
