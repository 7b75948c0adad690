"""`AgentToolset`: agents as tools. Each takes a question and returns an answer; trajectories are recorded."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.core.failures import Failure, failure_of
from midstream.core.toolsets import ToolContent, ToolResult, ToolSpec
from midstream.core.types import Status, Task
from midstream.evaluate.agent import AgentSource, find_agent, load_agent
from midstream.evaluate.ask import NOT_NEEDED
from midstream.evaluate.runs import find_run
from midstream.gateway.in_process import InProcessGateway
from midstream.record.store import Store
from midstream.tools.errors import ToolError
from midstream.tools.session import MAX_NAME_CHARS

if TYPE_CHECKING:
    from midstream.learn.run.setup import TrainingContext

CHANNEL = "online"
_WAITING_S = 30.0
"""Seconds that a call may take beyond the agent's own time limit, because calls wait for each other."""
_PARAMETERS = {
    "type": "object",
    "properties": {"question": {"type": "string", "description": "the question, with everything needed to answer it"}},
    "required": ["question"],
    "additionalProperties": False,
}


class AgentToolset:
    """One tool per agent of `agents` (by tool name). Agents answer by greedy sampling.

    `store` is the path or URL of the database for the trajectories, in the channel `online`."""

    def __init__(self, agents: Mapping[str, AgentSource], store: str | None = None, *, trust: bool = False) -> None:
        self._sources, self._where, self._trust = agents, store, trust
        self._resources = AsyncExitStack()
        self._agents: dict[str, TrainingContext] = {}
        self._store: Store | None = None

    async def open(self) -> None:
        """Load the agents' models. Raises `UserError` for a wrong config or store."""
        async with AsyncExitStack() as resources:
            if self._where is not None:
                self._store = resources.enter_context(Store(self._where))
            endpoint = await resources.enter_async_context(InProcessGateway())
            for name, source in self._sources.items():
                self._agents[name] = await asyncio.to_thread(
                    load_agent, source, sections=NOT_NEEDED, trust=self._trust, endpoint=endpoint
                )
            self._resources = resources.pop_all()

    async def list(self) -> Sequence[ToolSpec]:
        return [
            ToolSpec(
                name=name,
                description=f"Ask the agent '{name}' a question.",
                parameters=_PARAMETERS,
                timeout_s=parts.config.rollout.timeout_s + _WAITING_S,
                returns="the agent's answer",
            )
            for name, parts in self._agents.items()
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        task = Task(id="question", prompt=arguments["question"], kind="question", split="test")
        label = f"{name}-{secrets.token_hex(6)}"
        (trajectory,) = await self._agents[name].evaluate([task], label, channel=CHANNEL, store=self._store)
        if failure_of(trajectory) is Failure.INFRASTRUCTURE:
            raise ToolUnavailable(f"the agent '{name}' cannot work: {trajectory.error}")
        if trajectory.status is not Status.COMPLETED or trajectory.answer is None:
            raise ToolError(f"the agent '{name}' gave no answer: {trajectory.error or trajectory.status.value}")
        return ToolResult((ToolContent(kind="text", text=trajectory.answer, source=f"trajectory:{trajectory.uid}"),))

    async def close(self) -> None:
        await self._resources.aclose()
        self._agents, self._store = {}, None


def find_agents(named: Sequence[str], runs_dir: str | Path = "runs") -> dict[str, AgentSource]:
    """Return agents by tool name. Each of `named` is the path of a config, or a run (a name in `runs_dir` or a folder),
    whose newest checkpoint answers. Raises `ConfigError` if two have the same name."""
    found: dict[str, AgentSource] = {}
    for text in named:
        is_config = text.endswith((".yaml", ".yml"))
        where: dict[str, Any] = {"config": text} if is_config else {"run": find_run(text, runs_dir)}
        source = find_agent(**where, runs_dir=runs_dir)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", str(source.config.get("name") or Path(text).stem))[:MAX_NAME_CHARS]
        if name in found:
            raise ConfigError(f"two agents are named '{name}'", "give one of their configs another `name`")
        found[name] = source
    return found
