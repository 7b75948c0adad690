"""No trajectory sees another's memory, sequentially or concurrently."""

from __future__ import annotations

import asyncio
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midstream.core.types import Task, Trajectory
from midstream.engines.base import Request
from midstream.rollouts import AgentFlowManager, groups_of

SECRET = re.compile(r"secret-\d+-\d+")


def whispering(request: Request) -> str:
    """Every reply contains a secret of its own trajectory, and the planner puts it into its tool call."""
    own = request.session.split("-")[-2:]
    word = f"secret-{int(own[0])}-{int(own[1])}"
    return f"echo: {word}" if request.role == "planner" else f"{word} yes"


def spoken(trajectory: Trajectory) -> set[str]:
    """All secrets that occur anywhere in a trajectory."""
    return set(SECRET.findall(repr(trajectory)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tasks=st.integers(1, 4), members=st.integers(1, 3), concurrency=st.integers(1, 12), in_order=st.booleans())
def test_trajectories_contain_only_their_own_text(make_worker, tasks, members, concurrency, in_order) -> None:
    worker = make_worker(whispering, rules=("analysis", "executor"))
    manager = AgentFlowManager(worker, concurrency=concurrency, in_order=in_order)
    drawn = [Task(id=str(place), prompt=f"What of secret-{place}-99?") for place in range(tasks)]
    attempts = groups_of(drawn, members, prefix="r", seed=1)
    for _ in range(2):  # and again on the same worker
        done = asyncio.run(manager.run(attempts))
        assert [trajectory.uid for trajectory in done] == [attempt.uid for attempt in attempts]
        for number, trajectory in enumerate(done):
            place, member = divmod(number, members)
            assert spoken(trajectory) == {f"secret-{place}-99", f"secret-{place}-{member}"}
            assert [step.step_index for step in trajectory.steps] == list(range(len(trajectory.steps)))


def test_a_real_model_answers_each_trajectory_as_if_alone(make_policy, make_worker, by_role) -> None:
    """With real caches and slots, a trajectory does not depend on other trajectories before or beside it."""
    policy = make_policy("bfloat16", slots=2)
    worker = make_worker(by_role(), role_engines={"policy": policy.role_engine}, rules=("analysis", "executor"))
    tasks = [Task(id=str(place), prompt=f"What is {place} plus {7 * place}?") for place in range(2)]
    attempts = groups_of(tasks, 2, prefix="r", seed=5)

    def contents(trajectory: Trajectory) -> list[object]:
        return [(step.prompt_ids, step.response_ids, step.rollout_log_probs) for step in trajectory.steps]

    crowd = asyncio.run(AgentFlowManager(worker, concurrency=8).run(attempts))
    one_by_one = asyncio.run(AgentFlowManager(worker, concurrency=1).run(attempts))
    alone = asyncio.run(AgentFlowManager(worker).run(attempts[2:3]))
    assert [contents(trajectory) for trajectory in crowd] == [contents(trajectory) for trajectory in one_by_one]
    assert contents(alone[0]) == contents(crowd[2])
    assert len({str(contents(trajectory)) for trajectory in crowd}) == 4
