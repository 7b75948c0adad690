"""Failures of one trajectory become its status and do not affect others."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import register
from midstream.core.errors import ConfigError, EngineError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Status, Task, Trajectory
from midstream.engines.base import Request
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rollouts import AgentFlowManager, groups_of


@register("test_broken")
class Broken(AgentFlowBase):
    """Raises outside `run`: in its constructor or in `metadata`."""

    def __init__(self, session: Any, config: Any = None) -> None:
        super().__init__(session, config)
        if self.task.question == "constructor":
            raise RuntimeError("no licence")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        await self.chat([{"role": "user", "content": self.task.question}], sampling_params=sampling_params)
        return 1

    def metadata(self) -> dict[str, Any]:
        return {"score": self.score}  # type: ignore[attr-defined]


@register("test_moody")
class Moody(AgentFlowBase):
    """Behaves as its task requests."""

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        step = await self.chat([{"role": "user", "content": self.task.question}], sampling_params=sampling_params)
        self.answer = step.text
        match self.task.question:
            case "raise":
                raise KeyError("gone")
            case "hang":
                await asyncio.sleep(60)
            case "time out by itself":
                raise TimeoutError("the weather service")
            case "typo":
                await self.chat([], role="planer")
            case _:
                pass
        return 1


def says(request: Request) -> str | Exception:
    text = request.messages[-1]["content"]
    return EngineError("the server is down") if text == "engine down" else f"fine: {text}"


def run(make_worker, questions: list[str], *, store: Store | None = None, **manager: Any) -> list[Trajectory]:
    worker = make_worker(says, "test_moody", worker={"timeout_s": 3.0, "score": RewardFunction().score, "store": store})
    tasks = [Task(id=str(place), prompt=question, answer="x") for place, question in enumerate(questions)]
    return asyncio.run(AgentFlowManager(worker, **manager).run(groups_of(tasks, 1, prefix="r", seed=0)))


@pytest.mark.parametrize("manager", [{"concurrency": 8}, {"concurrency": 1}, {"concurrency": 8, "in_order": True}])
def test_a_failure_affects_only_its_own_trajectory(make_worker, manager: dict[str, Any], tmp_path: Path) -> None:
    questions = ["well", "raise", "hang", "engine down", "time out by itself", "also well"]
    with Store(tmp_path / "store.sqlite") as store:
        done = run(make_worker, questions, store=store, **manager)
        kept = [store.trajectories.get(trajectory.uid) for trajectory in done]
    assert [(trajectory.status, trajectory.error) for trajectory in done] == [
        (Status.COMPLETED, ""),
        (Status.FAILED, "KeyError: 'gone'"),
        (Status.TIMED_OUT, "took longer than rollout.timeout_s = 3 s"),
        (Status.FAILED, "the server is down"),
        (Status.FAILED, "TimeoutError: the weather service"),
        (Status.COMPLETED, ""),
    ]
    assert [len(trajectory.steps) for trajectory in done] == [1, 1, 1, 0, 1, 1]
    assert [trajectory.reward for trajectory in done] == [0.0, None, None, None, None, 0.0]
    assert [(t.status, t.steps, t.reward) for t in kept] == [(t.status, t.steps, t.reward) for t in done]


def test_a_flow_that_raises_outside_run_fails_its_own_trajectory(make_worker) -> None:
    worker = make_worker(says, "test_broken")
    tasks = [Task(id=question, prompt=question) for question in ("constructor", "metadata")]
    first, second = asyncio.run(AgentFlowManager(worker).run(groups_of(tasks, 1, prefix="r", seed=0)))
    assert (first.status, first.error, first.steps) == (Status.FAILED, "RuntimeError: no licence", ())
    assert second.status is Status.FAILED
    assert "has no attribute 'score'" in second.error
    assert [step.text for step in second.steps] == ["fine: metadata"]


def test_a_user_error_stops_the_rollout_and_is_raised_once(make_worker) -> None:
    with pytest.raises(ConfigError, match="no engine for the role 'planer'"):
        run(make_worker, ["well", "typo", "typo"])


def test_concurrency_limits_running_trajectories(make_worker) -> None:
    under_way: list[int] = [0, 0]

    @register("test_counted")
    class Counted(AgentFlowBase):
        async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
            under_way[0] += 1
            under_way[1] = max(under_way)
            await asyncio.sleep(0.002)
            under_way[0] -= 1
            return 0

    worker = make_worker(says, "test_counted")
    attempts = groups_of([Task(id="t", prompt="?")], 20, prefix="r", seed=0)
    asyncio.run(AgentFlowManager(worker, concurrency=3).run(attempts))
    assert under_way[1] == 3


def test_a_slow_tool_delays_no_other_trajectory(make_worker) -> None:
    """Each of twenty tools returns only once all twenty are running."""
    from midstream.tools import tool

    everybody = threading.Barrier(20, timeout=30)

    @tool
    def meet() -> str:
        """Wait for the others."""
        everybody.wait()
        return "met"

    @register("test_meeting")
    class Meeting(AgentFlowBase):
        async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
            self.answer = (await self.call_tool("meet", {})).result
            return 0

    worker = make_worker(says, "test_meeting")
    worker._toolbox = type(worker._toolbox)([meet])
    attempts = groups_of([Task(id="t", prompt="?")], 20, prefix="r", seed=0)
    done = asyncio.run(AgentFlowManager(worker, concurrency=20).run(attempts))
    assert {trajectory.answer for trajectory in done} == {"met"}


def test_attempts_are_reproducible() -> None:
    tasks = [Task(id="a", prompt="?"), Task(id="b", prompt="?")]
    once, again = (groups_of(tasks, 3, prefix="train-7", seed=1) for _ in range(2))
    assert once == again
    assert len({attempt.seed for attempt in once}) == len({attempt.uid for attempt in once}) == 6
    assert [attempt.prompt_uid for attempt in once] == ["train-7-0000"] * 3 + ["train-7-0001"] * 3
    other = groups_of(tasks, 3, prefix="train-8", seed=1)
    assert not {attempt.seed for attempt in other} & {attempt.seed for attempt in once}


def test_role_sampling_falls_back_to_the_rollouts(make_worker, by_role, attempt) -> None:
    from midstream.agents.config import RoleConfig, RoleSamplingConfig

    planner = RoleConfig(sampling=RoleSamplingConfig(max_tokens=7, stop=("\n",)))
    worker = make_worker(by_role(planner="none", generator="x"), roles={"planner": planner})
    asyncio.run(worker.run(attempt()))
    asyncio.run(worker.run(attempt(), temperature=0.0))
    heard = [(r.role, r.sampling.max_tokens, r.sampling.stop, r.sampling.temperature) for r in worker.engines[0].heard]
    assert heard == [
        ("planner", 7, ("\n",), 1.0),
        ("generator", 8, (), 1.0),
        ("planner", 7, ("\n",), 0.0),
        ("generator", 8, (), 0.0),
    ]


def test_a_flow_that_cancels_itself_fails_its_own_trajectory(make_worker, attempt, by_role) -> None:
    @register("cancels_itself")
    class CancelsItself(AgentFlowBase):
        async def run(self, sampling_params, **kwargs) -> int:
            raise asyncio.CancelledError

    worker = make_worker(by_role(policy="hello"), "cancels_itself")
    made = asyncio.run(AgentFlowManager(worker).run([attempt(uid="a"), attempt(uid="b")]))
    assert [(t.status, t.error) for t in made] == [(Status.FAILED, "the flow was cancelled from within")] * 2


@pytest.mark.parametrize("noted", [3, "text", [1, 2], [{"call": None}], [{"call": 0}]])
def test_flow_metadata_can_always_be_displayed(make_worker, attempt, by_role, noted) -> None:
    from midstream.learn.data.samples import sample_row

    @register("notes_turns")
    class NotesTurns(AgentFlowBase):
        async def run(self, sampling_params, **kwargs) -> int:
            self.answer = (await self.chat([{"role": "user", "content": "?"}])).text
            return 1

        def metadata(self) -> dict[str, object]:
            return {"turns": noted}

    worker = make_worker(by_role(policy="hello"), "notes_turns")
    (made,) = asyncio.run(AgentFlowManager(worker).run([attempt()]))
    assert sample_row("base", 0, made, True)["turns"][0]["text"] == "hello"


@pytest.mark.parametrize("role", ["planner", "policy"])
def test_a_role_without_a_rule_cannot_use_rules(make_worker, by_role, role) -> None:
    from midstream.agents.config import RoleConfig

    with pytest.raises(ConfigError, match=rf"flow\.roles\.{role}\.engine is 'rules'"):
        make_worker(by_role(), roles={role: RoleConfig(engine="rules")})


def test_the_planner_sees_the_remaining_calls(make_worker, attempt, by_role) -> None:
    says = by_role(planner=["calculator: 1 + 1", "echo: hi"], generator="2")
    worker = make_worker(says, max_tool_calls=2)
    asyncio.run(AgentFlowManager(worker).run([attempt()]))
    asked = [r.messages[-1]["content"].splitlines()[-1] for r in worker.engines[0].heard if r.role == "planner"]
    assert asked[:2] == ["[planner 1/3, calls left: 2]", "[planner 2/3, calls left: 1]"]
