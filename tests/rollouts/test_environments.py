"""The flow `environment_agent` and the component `environment`, on an environment of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
from tests.rollouts.conftest import MakeWorker

from midstream.core.environments import Environment, Outcome
from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Message, Status, Task, Trajectory
from midstream.rewards.components import StepRewards, resolve
from midstream.rollouts import Attempt
from midstream.tasks import environments
from midstream.tasks import load as load_module
from midstream.tasks.environments import ENVIRONMENTS, register_environment
from midstream.tasks.environments.episodes import Episodes
from midstream.tasks.load import TasksConfig, load_tasks
from midstream.tasks.taskset import TaskSet

closed: list[int] = []


class Countdown:
    """Count down from the seed; a wrong number costs 1."""

    def __init__(self, seed: int) -> None:
        self.seed, self.left = seed, seed

    async def reset(self) -> Sequence[Message]:
        return [{"role": "user", "content": f"Count down from {self.left}."}]

    async def act(self, action: str) -> Outcome:
        if action == "broken":
            raise RuntimeError("the counter broke")
        if action != str(self.left):
            return Outcome(observation="no", reward=-1.0)
        self.left -= 1
        return Outcome(observation=f"{self.left} to go", done=self.left == 0, reward=1.0, info={"left": self.left})

    async def close(self) -> None:
        closed.append(self.seed)


@pytest.fixture(autouse=True)
def countdown(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("countdown_environments")

    def tasks(env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
        return Episodes("countdown", env, settings, seed, lambda own: (f"Count down from {own % 50}.", own % 50))

    def environment(env: str, settings: Mapping[str, Any], seed: int) -> Environment:
        return Countdown(seed)

    vars(module).update(tasks=tasks, environment=environment)
    monkeypatch.setattr(environments, "ENVIRONMENTS", ENVIRONMENTS.copy())
    monkeypatch.setattr(load_module, "ENVIRONMENTS", environments.ENVIRONMENTS)
    register_environment("countdown", module)
    with pytest.raises(ConfigError, match="already registered"):
        register_environment("gymnasium", module)
    monkeypatch.setitem(environments.ENVIRONMENTS, "absent", "a_package_that_is_absent")
    closed.clear()


@pytest.fixture
def play(make_worker: MakeWorker, by_role):
    def run(*replies: str, **settings: Any) -> Trajectory:
        named = {"type": "countdown", "env": "plain", "settings": {}, "seed": 2}
        task = Task(id="t", prompt="Count down from 2.", metadata={"environment": named})
        worker = make_worker(by_role(policy=list(replies)), "environment_agent", rules=(), settings=settings)
        return asyncio.run(worker.run(Attempt(task=task, uid="u", prompt_uid="p", seed=1)))

    return run


def test_an_episode_is_played_to_its_end(play) -> None:
    made = play("7", "<think>3, no</think> 2", "1", system="Be quick.")
    assert made.status is Status.COMPLETED and made.turns == 3 and closed == [2]
    assert made.metadata["environment"] == {"rewards": [-1.0, 1.0, 1.0], "done": True, "left": 0}
    assert [m["content"] for m in made.steps[2].messages] == [
        "Be quick.",
        "Count down from 2.",
        "7",
        "no",
        "<think>3, no</think> 2",
        "1 to go",
    ]
    rewards = resolve("environment").function(made)
    assert isinstance(rewards, StepRewards) and rewards.values == (-1.0, 1.0, 1.0) and rewards.total == 1.0


def test_an_episode_that_does_not_end_is_cut(play) -> None:
    made = play("7", max_turns=2)
    assert made.metadata["environment"] == {"rewards": [-1.0, -1.0], "done": False} and closed == [2]


def test_an_environment_that_fails_fails_its_trajectory_and_is_closed(play) -> None:
    made = play("broken")
    assert made.status is Status.FAILED and "the counter broke" in made.error and closed == [2]


def test_a_task_without_an_environment_is_an_error(make_worker: MakeWorker, by_role) -> None:
    worker = make_worker(by_role(policy="x"), "environment_agent", rules=())
    with pytest.raises(ConfigError, match="task 't' has no environment"):
        asyncio.run(worker.run(Attempt(task=Task(id="t", prompt="?"), uid="u", prompt_uid="p", seed=1)))


def test_the_component_does_not_apply_elsewhere() -> None:
    assert resolve("environment").function(Trajectory(uid="u", prompt_uid="p", task=Task(id="t", prompt="?"))) is None


def test_tasks_name_their_environment_and_splits_share_no_question() -> None:
    def read(seed: int) -> TaskSet:
        source = {"type": "countdown", "env": "plain", "settings": {"fast": True}}
        return load_tasks(TasksConfig.model_validate({"sources": [source], "seed": seed}))

    tasks = read(0)
    task = tasks.get("test", 0)
    assert task.metadata["environment"]["settings"] == {"fast": True} and task.kind == "plain"
    train = {tasks.get("train", index).question for index in range(100)}
    test = [tasks.get("test", index) for index in range(20)]
    assert not train & {one.question for one in test}
    assert [read(1).get("test", index) for index in range(20)] == test
    assert [read(1).get("train", index).id for index in range(9)] != [
        tasks.get("train", index).id for index in range(9)
    ]


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ({"type": "countdown"}, ConfigError, "names no environment"),
        ({"type": "direct", "env": "x"}, ConfigError, "'direct' has no environments"),
        ({"type": "direct", "settings": {"a": 1}}, ConfigError, "'direct' has no environments"),
        ({"type": "countdown", "env": "plain", "question": "q"}, ConfigError, "takes no option `question`"),
        ({"type": "absent", "env": "x"}, TaskError, "need the package 'a_package_that_is_absent'"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(source: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_tasks(TasksConfig.model_validate({"sources": [source]}))


def test_a_split_that_no_seed_reaches_says_so() -> None:
    tasks = Episodes("countdown", "same", {}, 0, lambda seed: ("always this", None))
    with pytest.raises(TaskError, match="its episodes begin alike"):
        [tasks.get(split, 0) for split in ("train", "val", "test")]
