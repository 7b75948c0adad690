"""Running flows: `AgentFlowWorker` runs one trajectory, `AgentFlowManager` many at once. This is the rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from midstream.agents.base import AgentFlowBase, FlowSession, Score
from midstream.agents.config import FlowConfig, SamplingConfig
from midstream.agents.endpoint import AgentEndpoint
from midstream.agents.registry import find_flow, load_flows
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, EngineError, MidstreamError, UserError, nearest
from midstream.core.failures import Failure, because
from midstream.core.sampling import SamplingParams
from midstream.core.secrets import text_without_secrets
from midstream.core.seeds import derive_seed
from midstream.core.types import Status, Task, Trajectory
from midstream.engines.base import Engine
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.store import Store
from midstream.tools import Toolbox, load_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One trajectory to make. `seed` fixes what is sampled in it."""

    task: Task
    uid: str
    prompt_uid: str
    seed: int
    channel: str = "train"
    train_step: int | None = None
    mask_seed: int | None = None
    """Decides which words `flow.mask_results` hides; None hides none."""


class TrajectorySink(Protocol):
    """Where attempts are recorded: in a store here, or by a gateway elsewhere."""

    def recorder(self, attempt: Attempt) -> Recorder: ...

    def endpoint(self, attempt: Attempt) -> AgentEndpoint | None:
        """Where a black-box agent's calls come in; None is the gateway's own in this process."""
        ...

    async def begin(self, attempt: Attempt) -> None: ...

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None: ...


class LocalSink:
    """Attempts recorded here: in a store, or in memory only."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def recorder(self, attempt: Attempt) -> Recorder:
        return Recorder(attempt.uid, attempt.prompt_uid, seed=attempt.seed, store=self._store, channel=attempt.channel)

    def endpoint(self, attempt: Attempt) -> AgentEndpoint | None:
        return None

    async def begin(self, attempt: Attempt) -> None:
        if self._store is not None:
            self._store.trajectories.begin(
                attempt.uid, attempt.prompt_uid, attempt.task, attempt.channel, attempt.train_step
            )

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None:
        if self._store is not None:
            await self._store.trajectories.finish(trajectory, attempt.channel)


class AgentFlowWorker:
    """Runs one attempt at a time to its end. Whatever a flow does, there is a trajectory with a status at the end."""

    def __init__(
        self,
        flow: FlowConfig,
        role_engines: Mapping[str, RoleEngine],
        *,
        sampling: SamplingConfig,
        store: Store | None = None,
        records: TrajectorySink | None = None,
        score: Score | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        if flow.flows_file is not None:
            load_flows(flow.flows_file)
        self._flow = find_flow(flow.name)
        parse_config(self._flow.settings, flow.settings, f"flow.settings of '{flow.name}'")
        self._config = flow
        if "policy" not in role_engines:
            raise ConfigError("a flow needs an engine for the role 'policy'")
        self._role_engines = dict(role_engines)
        for role in self._flow.roles:
            if role in self._role_engines or (role in flow.roles and flow.roles[role].engine == "rules"):
                continue
            self._role_engines[role] = self._role_engines["policy"]
        for role, config in flow.roles.items():
            if role not in (*self._flow.roles, "policy"):
                raise ConfigError(
                    f"flow.roles.{role}: the flow '{flow.name}' has no such role", nearest(role, self._flow.roles)
                )
            if config.engine == "rules" and role not in self._flow.by_rule:
                able = f"its roles that do: {', '.join(self._flow.by_rule)}; " if self._flow.by_rule else ""
                raise ConfigError(
                    f"flow.roles.{role}.engine is 'rules', but the flow '{flow.name}' has no rule for that role",
                    f"{able}use policy, frozen, or a URL here",
                )
        self._toolbox = Toolbox(
            load_tools(flow.tools),
            max_calls=flow.max_tool_calls,
            max_result_chars=flow.max_result_chars,
            mask=flow.mask_results,
        )
        self._sampling = sampling
        self._records: TrajectorySink = records or LocalSink(store)
        self._score, self._timeout_s = score, timeout_s

    @property
    def roles(self) -> dict[str, bool]:
        """The flow's roles that have a role engine, and whether what each says is trained on."""
        return {role: self._role_engines[role].trainable for role in self._flow.roles if role in self._role_engines}

    @property
    def engines(self) -> list[Engine]:
        """Every engine a trajectory may call, once."""
        return list(
            {id(role_engine.engine): role_engine.engine for role_engine in self._role_engines.values()}.values()
        )

    async def run(self, attempt: Attempt, *, temperature: float | None = None) -> Trajectory:
        """Make one trajectory and score it. `temperature` overrides every role's (0 for greedy evaluation)."""
        try:
            await self._records.begin(attempt)
        except EngineError as error:
            return _unheard(attempt, error)
        sampling = {role: self._sampling_of(role, temperature) for role in {*self._role_engines, "policy"}}
        session = FlowSession(
            task=attempt.task,
            recorder=self._records.recorder(attempt),
            role_engines=self._role_engines,
            tools=self._toolbox.session(attempt.mask_seed),
            sampling=sampling,
            score=self._score,
            endpoint=self._records.endpoint(attempt),
        )
        for engine in self.engines:
            engine.join(attempt.uid)
        try:
            trajectory = await self._attempt(session, sampling["policy"], attempt)
        finally:
            for engine in self.engines:
                engine.leave(attempt.uid)
        if self._score is not None:
            trajectory = await self._score(trajectory)
        try:
            await self._records.finish(trajectory, attempt)
        except EngineError as error:
            failed = replace(trajectory, status=Status.FAILED, error=str(error), reward=None)
            return because(failed, Failure.INFRASTRUCTURE)
        return trajectory

    async def _attempt(self, session: FlowSession, sampling: SamplingParams, attempt: Attempt) -> Trajectory:
        hidden = {"plan", "needs"}
        fields = {key: value for key, value in attempt.task.metadata.items() if key not in hidden}
        question = attempt.task.question
        own = {
            "task": question,
            "raw_prompt": question,
            "trajectory_uid": attempt.uid,
            "prompt_uid": attempt.prompt_uid,
        }
        flow: AgentFlowBase | None = None
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                flow = self._flow(session, self._config.settings)
                await flow.run(sampling, **{**fields, **own})
            return flow.trajectory()
        except UserError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the whole rollout is being given up
            return _ended(session, flow, Status.FAILED, "the flow was cancelled from within")
        except EngineError as error:
            return because(_ended(session, flow, Status.FAILED, str(error)), Failure.INFRASTRUCTURE)
        except MidstreamError as error:
            return _ended(session, flow, Status.FAILED, str(error))
        except Exception as error:  # whatever a flow raises costs its own trajectory, never the run
            if isinstance(error, TimeoutError) and limit.expired():
                late = f"took longer than rollout.timeout_s = {self._timeout_s:g} s"
                return _ended(session, flow, Status.TIMED_OUT, late)
            return _ended(session, flow, Status.FAILED, f"{type(error).__name__}: {error}")

    def _sampling_of(self, role: str, temperature: float | None) -> SamplingParams:
        settings: dict[str, Any] = self._sampling.model_dump()
        if role in self._config.roles:
            settings |= self._config.roles[role].sampling.model_dump(exclude_none=True)
        if temperature is not None:
            settings["temperature"] = temperature
        return SamplingParams(**settings)


def _unheard(attempt: Attempt, error: EngineError) -> Trajectory:
    """The trajectory of an attempt that could not even begin."""
    failed = Trajectory(
        uid=attempt.uid, prompt_uid=attempt.prompt_uid, task=attempt.task, status=Status.FAILED, error=str(error)
    )
    return because(failed, Failure.INFRASTRUCTURE)


def _ended(session: FlowSession, flow: AgentFlowBase | None, status: Status, error: str) -> Trajectory:
    """The trajectory of a flow that did not end well; all that was recorded, where the flow itself cannot say."""
    error = text_without_secrets(error)
    if flow is not None:
        try:
            return flow.trajectory(status, error)
        except Exception as broken:  # a flow's own `metadata`, which may need what it never came to set
            error = f"{error}; then its metadata() raised {type(broken).__name__}: {broken}"
    recorder = session.recorder
    return Trajectory(
        uid=recorder.trajectory_uid,
        prompt_uid=recorder.prompt_uid,
        task=session.task,
        steps=recorder.recorded(),
        tool_calls=tuple(session.tool_calls),
        turns=len(recorder.finished()),
        status=status,
        error=error,
    )


class AgentFlowManager:
    """Runs many attempts at once. `in_order` runs them in fixed cohorts, so that what shares a batch never depends on
    timing."""

    def __init__(self, worker: AgentFlowWorker, *, concurrency: int = 64, in_order: bool = False) -> None:
        self._worker, self._concurrency, self._in_order = worker, concurrency, in_order

    @property
    def roles(self) -> dict[str, bool]:
        """As `AgentFlowWorker.roles`."""
        return self._worker.roles

    async def run(
        self,
        attempts: Sequence[Attempt],
        *,
        temperature: float | None = None,
        on_done: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """One trajectory per attempt, in the order of `attempts`; `on_done` hears of each as it ends."""

        async def one(attempt: Attempt) -> Trajectory:
            trajectory = await self._worker.run(attempt, temperature=temperature)
            if on_done is not None:
                on_done(trajectory)
            return trajectory

        if self._in_order:
            done: list[Trajectory] = []
            for start in range(0, len(attempts), self._concurrency):
                cohort = attempts[start : start + self._concurrency]
                # All join before any starts: the engine waits for every one of them.
                for attempt in cohort:
                    for engine in self._worker.engines:
                        engine.join(attempt.uid)
                done += await _gather([one(attempt) for attempt in cohort])
            return done
        places = asyncio.Semaphore(self._concurrency)

        async def in_turn(attempt: Attempt) -> Trajectory:
            async with places:
                return await one(attempt)

        return await _gather([in_turn(attempt) for attempt in attempts])


async def _gather(runs: Sequence[Any]) -> list[Trajectory]:
    """All results in order; the first error cancels the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
    except ExceptionGroup as errors:
        # Whatever stops a rollout is the same for every attempt in it: one is told, not one for each.
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def groups_of(
    tasks: Sequence[Task],
    size: int,
    *,
    prefix: str,
    seed: int,
    channel: str = "train",
    train_step: int | None = None,
    masked: bool = False,
) -> list[Attempt]:
    """`size` attempts at each of `tasks`; uids and seeds come from `prefix` and the places alone, so a repeated step
    repeats them. `masked` hides what `flow.mask_results` says: all attempts at a task in a step miss the same words."""
    return [
        Attempt(
            task=task,
            uid=f"{prefix}-{place:04d}-{member:02d}",
            prompt_uid=f"{prefix}-{place:04d}",
            seed=derive_seed(seed, prefix, place, task.id, member),
            channel=channel,
            train_step=train_step,
            mask_seed=derive_seed(seed, "mask", train_step, task.id) if masked else None,
        )
        for place, task in enumerate(tasks)
        for member in range(size)
    ]
