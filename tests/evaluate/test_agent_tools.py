"""Agents as tools: a question in, the answer out, the trajectory in a store."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from midstream import cli
from midstream.core.errors import ConfigError, RunError
from midstream.evaluate.agent_tools import AgentToolset, find_agents
from midstream.record.store import Store
from midstream.tools import Toolbox
from midstream.tools.toolbox import ToolsetFactory


def config(folder: Path, model: str, name: str = "desk clerk", **flow: Any) -> str:
    path = folder / f"{name.replace(' ', '-')}.yaml"
    settings = {
        "name": name,
        "policy": {"model": model, "dtype": "float32"},
        "tasks": {"sources": [{"type": str(folder / "missing.jsonl")}]},
        "flow": {"name": "single_step_single_turn_agent", **flow},
        "rollout": {"sampling": {"max_tokens": 4}},
    }
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_a_question_is_answered_and_recorded(tiny_path: Path, tmp_path: Path) -> None:
    where = str(tmp_path / "agents.sqlite")
    agents = find_agents([config(tmp_path, str(tiny_path))], tmp_path)

    async def scenario() -> Any:
        box = Toolbox(toolsets=[ToolsetFactory(lambda: AgentToolset(agents, where))])
        async with AsyncExitStack() as resources:
            session = box.session()
            await session.open(resources)
            asked = [{"question": "What is 2 + 2?"}, {"question": "What is 2 + 2?"}, {"prompt": "?"}]
            return session.tools, [await session.run("desk_clerk", one) for one in asked]

    (tool,), (first, again, wrong) = asyncio.run(scenario())
    assert tool.signature == "desk_clerk(question: string)"
    assert first[0].ok and first[0].result == again[0].result, "greedy sampling answers alike"
    assert wrong[0].error_kind == "invalid_arguments"
    with Store(where, read_only=True) as store:
        recorded = {one.uid: one for one in store.trajectories.iterate(channel="online")}
    assert len(recorded) == 2
    trajectory = recorded[first[1].parts[0].source.removeprefix("trajectory:")]
    assert trajectory.answer == first[1].text and trajectory.steps[0].response_ids
    assert "What is 2 + 2?" in str(trajectory.task.prompt)


def test_agents_that_cannot_be_served_are_refused(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        find_agents(["nowhere"], tmp_path)
    (tmp_path / "a").mkdir()
    twice = [config(tmp_path, str(tiny_path)), config(tmp_path / "a", str(tiny_path))]
    with pytest.raises(ConfigError, match="two agents are named 'desk_clerk'"):
        find_agents(twice, tmp_path)


def test_a_server_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["mcp", "--port", "0"]) == 2
    assert "name tools, or an agent with --agent" in capsys.readouterr().err
