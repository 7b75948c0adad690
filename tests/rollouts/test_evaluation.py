"""`evaluate_tasks`, and flows whose roles depend on their settings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.agents.base import AgentFlowBase
from midstream.agents.config import FlowConfig, RoleConfig
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.errors import ConfigError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rollouts import RolloutConfig, SamplingConfig, evaluate_tasks

TASKS = [Task(id=f"{n}", prompt=f"What is {n} + 1?", answer=str(n + 1)) for n in range(3)]


@pytest.fixture
def engine(make_worker):
    def make(says: Any) -> RoleEngine:
        return make_worker(says)._role_engines["policy"]

    return make


def test_each_task_gets_one_greedy_scored_attempt(engine, tmp_path) -> None:
    policy = engine(lambda request: "2")
    done: list[str] = []
    with Store(tmp_path / "store.sqlite") as store:
        made = asyncio.run(
            evaluate_tasks(
                FlowConfig(),
                {"policy": policy},
                TASKS,
                RewardFunction().score,
                rollout=RolloutConfig(sampling=SamplingConfig(temperature=0.7, max_tokens=5)),
                store=store,
                label="step 3",
                channel="val",
                on_done=lambda trajectory: done.append(trajectory.uid),
            )
        )
        assert store.trajectories.get("val-step-3-0001-00") == made[1]
    assert [trajectory.task for trajectory in made] == TASKS
    assert [trajectory.reward for trajectory in made] == [0.0, 1.0, 0.0]
    assert sorted(done) == [trajectory.uid for trajectory in made]
    assert {(request.sampling.temperature, request.sampling.max_tokens) for request in policy.engine.heard} == {(0, 5)}


class GraphSettings(Config):
    nodes: tuple[str, ...] = ("draft",)
    """The nodes of the graph, each a role."""


@register("graph_for_rollouts")
class Graph(AgentFlowBase):
    """Calls the nodes named in its settings, in order."""

    settings = GraphSettings

    @classmethod
    def roles_for(cls, settings: Config) -> tuple[str, ...]:
        assert isinstance(settings, GraphSettings)
        return settings.nodes

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        for node in self.roles_for(self.config):
            self.answer = (await self.chat([{"role": "user", "content": kwargs["task"]}], role=node)).text
        return len(self.steps)


def graph(make_worker, by_role, *nodes: str, **flow: Any) -> Any:
    says = by_role(**{node: node for node in nodes})
    return make_worker(says, "graph_for_rollouts", settings={"nodes": list(nodes)}, **flow)


def test_roles_can_depend_on_the_settings(make_worker, by_role, attempt, tiny_tokenizer) -> None:
    frozen = make_worker(by_role(refine="better"))._role_engines["policy"].engine
    worker = graph(
        make_worker, by_role, "draft", "refine", role_engines={"refine": RoleEngine(frozen, tiny_tokenizer, False)}
    )
    assert worker.roles == {"draft": True, "refine": False}
    made = asyncio.run(worker.run(attempt()))
    assert [(step.role, step.text, step.trainable) for step in made.steps] == [
        ("draft", "draft", True),
        ("refine", "better", False),
    ]


def test_a_role_not_in_the_settings_is_an_error(make_worker, by_role) -> None:
    with pytest.raises(ConfigError, match="has no such role"):
        graph(make_worker, by_role, "draft", roles={"refine": RoleConfig()})
