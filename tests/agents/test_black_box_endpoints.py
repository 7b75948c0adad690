"""Endpoints of black-box agents in a rollout: one trajectory per token, one server per gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.agents.black_boxes import assert_exact

from midstream.agents.black_box import BlackBoxAgentFlowBase
from midstream.agents.config import FlowConfig
from midstream.agents.registry import register
from midstream.core.errors import ConfigError
from midstream.core.types import Trajectory
from midstream.engines.scripted import ScriptedEngine
from midstream.gateway.in_process import InProcessGateway
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rollouts import AgentFlowManager, AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig


def test_concurrent_agents_have_separate_trajectories(make_policy, tmp_path: Path) -> None:
    from midstream.core.types import Task

    async def go(store: Store) -> list[Trajectory]:
        worker = AgentFlowWorker(
            FlowConfig(name="two_questions_for_black_box"),
            {"policy": make_policy().role_engine},
            sampling=SamplingConfig(max_tokens=6, temperature=1.0),
            store=store,
            endpoint=InProcessGateway(),
        )
        attempts = [
            Attempt(task=Task(id=f"{n}", prompt=f"What is {n} + 1?"), uid=f"u{n}", prompt_uid="p", seed=n)
            for n in range(8)
        ]
        return await AgentFlowManager(worker).run(attempts)

    with Store(tmp_path / "store.sqlite") as store:
        for trajectory in asyncio.run(go(store)):
            assert_exact(trajectory)
            asked = {str(step.messages[0]["content"]) for step in trajectory.steps}
            assert asked == {trajectory.task.prompt, "Are you sure?"}
            assert store.trajectories.get(trajectory.uid) == trajectory


def test_a_token_is_valid_for_its_own_trajectory_only(make_policy, tmp_path: Path) -> None:
    """Two concurrent agents: one tries the other's address with its own token."""
    seen: list[tuple[str, str]] = []
    refused: list[int] = []

    @register("nosy_for_black_box")
    class Nosy(BlackBoxAgentFlowBase):
        async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> None:
            seen.append((base_url, self.address.token))
            while len(seen) < 2:
                await asyncio.sleep(0.01)
            other = next(url for url, _ in seen if url != base_url)
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {self.address.token}"}) as client:
                ask = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
                refused.append((await client.post(f"{other}/chat/completions", json=ask)).status_code)
            if len(refused) < 2:
                await asyncio.sleep(0.5)

    from midstream.core.types import Task

    worker = AgentFlowWorker(
        FlowConfig(name="nosy_for_black_box"),
        {"policy": make_policy().role_engine},
        sampling=SamplingConfig(max_tokens=4, temperature=1.0),
        endpoint=InProcessGateway(),
    )
    attempts = [Attempt(task=Task(id=f"{n}", prompt="?"), uid=f"u{n}", prompt_uid="p", seed=n) for n in range(2)]
    made = asyncio.run(AgentFlowManager(worker).run(attempts))
    assert refused == [403, 403]
    assert [trajectory.steps for trajectory in made] == [(), ()]


def test_a_black_box_flow_without_endpoint_is_refused(make_policy, attempt) -> None:
    worker = AgentFlowWorker(
        FlowConfig(name="two_questions_for_black_box"),
        {"policy": make_policy().role_engine},
        sampling=SamplingConfig(max_tokens=4, temperature=1.0),
    )
    with pytest.raises(ConfigError, match="there is no endpoint for its calls"):
        asyncio.run(worker.run(attempt()))


def test_each_in_process_gateway_has_its_own_server_until_closed(tiny_tokenizer, attempt) -> None:
    urls: list[str] = []

    @register("url_for_black_box")
    class Url(BlackBoxAgentFlowBase):
        async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> None:
            urls.append("/".join(base_url.split("/")[:3]))

    async def reachable(url: str) -> bool:
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{url}/health")).is_success
            except httpx.ConnectError:
                return False

    one, other = InProcessGateway(), InProcessGateway()
    policy = RoleEngine(ScriptedEngine(tiny_tokenizer, "Yes."), tiny_tokenizer, True)

    async def go() -> None:
        for endpoint in (one, one, other):
            await AgentFlowWorker(
                FlowConfig(name="url_for_black_box"),
                {"policy": policy},
                sampling=SamplingConfig(),
                endpoint=endpoint,
            ).run(attempt())
        assert await reachable(urls[0])
        await one.close()
        await one.close()  # nothing is left to close
        assert [await reachable(url) for url in urls[1:]] == [False, True]

    asyncio.run(go())
    assert urls[0] == urls[1] != urls[2]
    asyncio.run(
        AgentFlowWorker(
            FlowConfig(name="url_for_black_box"), {"policy": policy}, sampling=SamplingConfig(), endpoint=other
        ).run(attempt())
    )  # the loop that its server ran in is gone
    assert len(urls) == 4
