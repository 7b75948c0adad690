"""`PlanAndExecute` and `AutoGPT`: agents for use from Python without a config.

    agent = PlanAndExecute("smollm2-135m", tools=["search", "calculator"], strategy="graph", store="agents.sqlite")
    trajectory = agent.run("How many people live in Peru and Chile together?", uid="first")

With a `store`, an interrupted run is resumed when it is called again with the same `uid`. `config` returns a config for
training the agent (`midstream.train`).
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

from midstream.agents.config import FlowConfig, RoleConfig
from midstream.core.blocking import run_blocking
from midstream.core.errors import ConfigError, RunError
from midstream.core.types import Task, Trajectory
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rollouts.attempts import Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.rollouts.manager import AgentFlowManager
from midstream.rollouts.worker import AgentFlowWorker
from midstream.tools.declare import Tool


class StandaloneAgent:
    """An agent flow with its model and tools.

    `model` is the name or folder of a model, or your own engine. With `base_url` it is the name of a model at that
    OpenAI-compatible server, whose key is in the environment variable `api_key_env`. `tools` are names, as in
    `flow.tools`, or functions declared with `@tool`. `by_rule` are roles that follow their rule instead of calling the
    model. `store` (a path or URL) records every call, so that interrupted runs can be resumed. Other keyword arguments
    are settings of the flow."""

    flow: ClassVar[str]
    """Registered name of the flow."""

    def __init__(
        self,
        model: str | RoleEngine = "smollm2-135m",
        *,
        tools: Sequence[str | Tool[..., Any]] = (),
        by_rule: Sequence[str] = (),
        base_url: str | None = None,
        api_key_env: str | None = None,
        store: str | Path | None = None,
        max_tool_calls: int | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        timeout_s: float = 3600.0,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if isinstance(model, RoleEngine) and base_url is not None:
            raise ConfigError("both an engine and a base_url were given", "give the model's name with a base_url")
        self._model, self._base_url, self._api_key_env = model, base_url, api_key_env
        self._tools = [tool for tool in tools if isinstance(tool, Tool)]
        self._config = FlowConfig(
            name=self.flow,
            settings=settings,
            tools=tuple(tool for tool in tools if isinstance(tool, str)),
            roles={role: RoleConfig(engine="rules") for role in by_rule},
            max_tool_calls=max_tool_calls,
        )
        self._sampling = SamplingConfig(max_tokens=max_tokens, temperature=temperature)
        self._store, self._timeout_s, self._seed = store, timeout_s, seed
        engine = model if isinstance(model, RoleEngine) else _NO_ENGINE
        self._worker(engine, None)  # a wrong setting, role or tool is reported here

    def run(self, goal: str, *, uid: str | None = None, metadata: Mapping[str, Any] | None = None) -> Trajectory:
        """Work towards `goal`; the trajectory has the `answer`, and how it ended in `metadata["outcome"]`.

        With a `uid` that exists in the store, an interrupted run is resumed, and a finished one is returned.
        `run_async` is the async form."""
        return run_blocking(self.run_async(goal, uid=uid, metadata=metadata))

    async def run_async(
        self, goal: str, *, uid: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Trajectory:
        """Async form of `run`."""
        return (await self.run_all({uid or uuid.uuid4().hex[:16]: goal}, metadata=metadata))[0]

    async def run_all(
        self, goals: Mapping[str, str], *, metadata: Mapping[str, Any] | None = None, concurrency: int = 16
    ) -> list[Trajectory]:
        """Work towards several goals at once. `goals` are by uid; returns the trajectories in their order."""
        attempts = [
            Attempt(
                task=Task(id=uid, prompt=goal, kind="question", split="test", metadata=metadata or {}),
                uid=uid,
                prompt_uid=uid,
                seed=self._seed,
                channel="ask",
            )
            for uid, goal in goals.items()
        ]
        async with AsyncExitStack() as stack:
            store = None if self._store is None else stack.enter_context(Store(self._store, "normal"))
            if store is not None:
                self._check_goals(store, attempts)
            worker = self._worker(await self._engine(stack), store)
            return await AgentFlowManager(worker, concurrency=concurrency).run(attempts)

    def config(self, **sections: Any) -> dict[str, Any]:
        """Return a training config of this agent, for `midstream.train`. `sections` are the others: `name`, `tasks`,
        `reward`, `optimizer`, `trainer`. Raises `ConfigError` for a model or tool that a config cannot name."""
        if not isinstance(self._model, str) or self._base_url is not None:
            raise ConfigError("only a model of this machine can be trained", "give its name or folder")
        flow = self._config.model_dump(mode="json", exclude_defaults=True)
        flow["tools"] = [*self._config.tools, *map(_import_name, self._tools)]
        rollout = {"sampling": {"max_tokens": self._sampling.max_tokens}, **sections.pop("rollout", {})}
        policy = {"model": self._model, **sections.pop("policy", {})}
        return {"policy": policy, "flow": {"name": self.flow, **flow}, "rollout": rollout, **sections}

    def _worker(self, engine: RoleEngine, store: Store | None) -> AgentFlowWorker:
        return AgentFlowWorker(
            self._config,
            {"policy": engine},
            sampling=self._sampling,
            store=store,
            timeout_s=self._timeout_s,
            resume=True,
            tools=self._tools,
        )

    async def _engine(self, stack: AsyncExitStack) -> RoleEngine:
        if isinstance(self._model, RoleEngine):
            return self._model
        if self._base_url is not None:
            from midstream.engines.openai import OpenAIEngine

            return RoleEngine(OpenAIEngine(self._base_url, self._model, self._api_key_env), None, False)
        from midstream.engines.chat import load_tokenizer
        from midstream.engines.factory import EngineSettings, make_policy_engine
        from midstream.engines.models import resolve

        model = self._model
        tokenizer = await asyncio.to_thread(lambda: load_tokenizer(resolve(model)))
        return RoleEngine(await make_policy_engine(EngineSettings(model=model), tokenizer, stack), tokenizer, True)

    def _check_goals(self, store: Store, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            found = store.trajectories.find(attempt.uid)
            if found is not None and found.trajectory.task != attempt.task:
                raise RunError(f"run '{attempt.uid}' in the store has another goal", "give the new run another uid")


class PlanAndExecute(StandaloneAgent):
    """The flow `plan_and_execute`. Keyword arguments such as `strategy` and `max_replans` are its settings."""

    flow = "plan_and_execute"


class AutoGPT(StandaloneAgent):
    """The flow `autonomous`. Keyword arguments such as `max_turns` and `stop_after` are its settings."""

    flow = "autonomous"


class _NoEngine:
    """Placeholder for a model that is loaded later, used while settings are checked."""

    name, policy_version, context_length = "none", 0, 1 << 20

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Any) -> Any:
        raise NotImplementedError


_NO_ENGINE = RoleEngine(_NoEngine(), None, False)


def _import_name(tool: Tool[..., Any]) -> str:
    """Return the name by which a config imports a tool."""
    module, name = tool.function.__module__, tool.function.__qualname__
    if getattr(sys.modules.get(module), name, None) is not tool:
        raise ConfigError(
            f"the tool '{tool.name}' is not a global of its module, so a config cannot name it",
            "declare it with @tool at the top level of a module",
        )
    return f"{module}:{name}"
