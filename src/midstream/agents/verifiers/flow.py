"""`verifiers_agent`: plays environments of verifiers (v1). Their agent runs as it is, with the policy as its model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from midstream.agents.black_box import AgentFailed, BlackBoxAgentFlowBase
from midstream.agents.registry import register
from midstream.core.errors import ConfigError, ServiceError, TaskError
from midstream.tools.shared import SharedResources

NO_KEY = "MIDSTREAM_NO_KEY"
"""A variable that is not set: verifiers reads keys from variables, and the trajectory's token is a header."""
OUTAGES = ("SandboxError", "ToolsetError", "InterceptionError", "TunnelError")
"""Errors of verifiers that are not the agent's."""


@register("verifiers_agent")
class VerifiersAgentFlow(BlackBoxAgentFlowBase):
    """Runs one episode of the task's environment. The reward component `environment` is its reward; of several agents,
    their mean. All of them are the policy, unless the environment's settings give them a model of their own."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._played: dict[str, Any] = {}

    async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> str | None:
        from verifiers.v1 import EvalClientConfig, ModelContext

        from midstream.agents.verifiers.loading import load_env
        from midstream.tasks.environments.verifiers_adapter import KIND, load

        named = self.task.metadata.get("environment")
        if not isinstance(named, dict) or named.get("type") != KIND:
            raise ConfigError(
                f"the task '{self.task.id}' is not one of verifiers", "use verifiers_agent with a source of that type"
            )
        environment = await asyncio.to_thread(load_env, named["env"], named["settings"])
        task = await asyncio.to_thread(lambda: load(named["env"], named["settings"]).task(named["seed"]))
        if task is None:
            raise TaskError(f"the environment '{named['env']}' has no task {named['seed']} any more")
        client = EvalClientConfig(base_url=base_url, api_key_var=NO_KEY, headers={"x-api-key": self.address.token})
        key = f"{id(environment)}"
        await _serving.acquire(key, lambda: _served(environment))
        try:
            episode = await environment.run_episode(task, ModelContext(model=self.address.model, client=client))
        finally:
            await _serving.release(key)
        return self._ended(episode)

    def _ended(self, episode: Any) -> str | None:
        """Keep the rewards of an episode; returns its answer. Raises when it failed."""
        errors = [*episode.errors, *(error for trace in episode.traces if not trace.ok for error in trace.errors)]
        if errors:
            reason = f"{errors[-1].type}: {errors[-1].message}"
            raise ServiceError(reason) if errors[-1].type in OUTAGES else AgentFailed(reason)
        traces = episode.traces
        if not traces:
            raise AgentFailed("the episode ended before its agent acted")
        first = traces[0]
        self._played = {
            "rewards": [fmean(float(trace.reward) for trace in traces)],
            "done": True,
            "parts": {name: reward.value for name, reward in first.rewards.items()},
            "metrics": {name: float(value) for name, value in first.metrics.items()},
            "stop": first.stop_condition,
        }
        said = first.assistant_messages
        return said[-1].content if said else None

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), **({"environment": self._played} if self._played else {})}


class _Served:
    """What an environment's episodes share, held open by a task of its own."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._end = asyncio.Event()

    async def start(self) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._hold(ready))
        try:
            await ready
        except asyncio.CancelledError:
            self._running.cancel()
            await asyncio.wait({self._running})
            raise

    async def close(self) -> None:
        self._end.set()
        await self._running

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        try:
            async with self._environment.serving():
                ready.set_result(None)
                await self._end.wait()
        except (Exception, SystemExit) as error:  # verifiers exits where it lacks an account
            if ready.done():
                raise
            ready.set_exception(ServiceError(f"the environment cannot be served: {error}"))


async def _served(environment: Any) -> _Served:
    served = _Served(environment)
    await served.start()
    return served


async def _close(served: _Served) -> None:
    await served.close()


_serving: SharedResources[_Served] = SharedResources(_close)
