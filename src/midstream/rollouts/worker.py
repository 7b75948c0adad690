"""`AgentFlowWorker` generates one trajectory: runs the flow, closes its resources, scores and records it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from midstream.agents.base import AgentFlowBase, FlowSession, Score
from midstream.agents.config import FlowConfig
from midstream.agents.endpoint import AgentEndpoint
from midstream.agents.registry import find_flow, load_flows
from midstream.agents.resume import IN_DOUBT, RESUMED, check_replayed, count_calls_with_keys, divergence
from midstream.agents.toolsets import load_flow_tools
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, EngineError, MidstreamError, ServiceError, UserError, nearest
from midstream.core.failures import Failure, with_failure
from midstream.core.sampling import SamplingParams
from midstream.core.secrets import text_without_secrets
from midstream.core.types import Status, Step, Trajectory
from midstream.engines.base import Engine
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rollouts.attempts import Attempt
from midstream.rollouts.branches import branch_engines, misses, shared_calls
from midstream.rollouts.config import SamplingConfig
from midstream.rollouts.reruns import rerun_engines
from midstream.rollouts.sinks import Earlier, LocalSink, TrajectorySink
from midstream.tools import Tool, Toolbox

HIDDEN = ("demonstration", "plan", "needs")
"""Task metadata that reveals the solution, and is not passed to `run`."""
CLOSE_TIMEOUT_S = 30.0
"""Time limit for closing the resources of one trajectory."""

_log = logging.getLogger(__name__)


class AgentFlowWorker:
    """Runs attempts with one flow. Every attempt ends as a trajectory with a status, even if the flow fails.

    `role_engines` are by module role; `policy` is required and is the default for roles without their own engine.
    `tools` are added to those of the config. Trajectories are recorded in `sink`, else in `store`, else in memory only.
    `endpoint` accepts the calls of black-box agents, unless the sink provides an endpoint. With `resume` an interrupted
    attempt in the store is resumed, and one that has ended is not repeated, except with `retry_failed` one that failed.
    Raises `ConfigError` for an unknown flow, role, tool or setting."""

    def __init__(
        self,
        flow: FlowConfig,
        role_engines: Mapping[str, RoleEngine],
        *,
        sampling: SamplingConfig,
        store: Store | None = None,
        sink: TrajectorySink | None = None,
        score: Score | None = None,
        timeout_s: float = 300.0,
        endpoint: AgentEndpoint | None = None,
        resume: bool = False,
        retry_failed: bool = False,
        tools: Sequence[Tool[..., Any]] = (),
    ) -> None:
        if flow.flows_file is not None:
            load_flows(flow.flows_file)
        self._flow = find_flow(flow.name)
        settings = parse_config(self._flow.settings, flow.settings, f"flow.settings of '{flow.name}'")
        self._roles = self._flow.roles_for(settings)
        self._config = flow
        if "policy" not in role_engines:
            raise ConfigError("a flow needs an engine for the role 'policy'")
        self._role_engines = dict(role_engines)
        for role in self._roles:
            if role in self._role_engines or (role in flow.roles and flow.roles[role].engine == "rules"):
                continue
            self._role_engines[role] = self._role_engines["policy"]
            if role in self._flow.frozen and (role not in flow.roles or not flow.roles[role].train):
                self._role_engines[role] = replace(self._role_engines[role], trainable=False)
        for role, config in flow.roles.items():
            if role not in (*self._roles, "policy"):
                raise ConfigError(
                    f"flow.roles.{role}: the flow '{flow.name}' has no such role", nearest(role, self._roles)
                )
            if config.engine == "rules" and role not in self._flow.by_rule:
                able = f"roles with a rule: {', '.join(self._flow.by_rule)}; " if self._flow.by_rule else ""
                raise ConfigError(
                    f"flow.roles.{role}.engine is 'rules', but the flow '{flow.name}' has no rule for that role",
                    f"{able}use policy, frozen, or a URL here",
                )
        loaded = load_flow_tools(flow)
        self._toolbox = Toolbox(
            [*loaded.tools, *tools],
            toolsets=loaded.toolsets,
            use=flow.tool_use,
            max_calls=flow.max_tool_calls,
            max_result_chars=flow.max_result_chars,
            mask=flow.mask_results,
        )
        self._sampling = sampling
        self._sink: TrajectorySink = sink or LocalSink(store, resume=resume, retry_failed=retry_failed)
        self._score, self._timeout_s, self._endpoint = score, timeout_s, endpoint

    @property
    def roles(self) -> dict[str, bool]:
        """The flow's roles with an engine, and whether each role's responses are trained on."""
        return {role: self._role_engines[role].trainable for role in self._roles if role in self._role_engines}

    @property
    def engines(self) -> list[Engine]:
        """The distinct engines a trajectory may call."""
        return list(
            {id(role_engine.engine): role_engine.engine for role_engine in self._role_engines.values()}.values()
        )

    async def run(self, attempt: Attempt, *, temperature: float | None = None) -> Trajectory:
        """Generate one trajectory and score it. `temperature` overrides that of all roles (0 for greedy evaluation).

        Raises `UserError` for errors that the user must fix; any other failure becomes the trajectory's status."""
        if attempt.branch is not None and self._flow.resume == "none":
            raise ConfigError(
                f"attempts of the flow '{self._config.name}' cannot be branched: its calls cannot be repeated"
            )
        try:
            await self._sink.begin(attempt)
        except EngineError as error:
            return _not_begun(attempt, error)
        try:
            return await self._run_begun(attempt, temperature)
        finally:
            self._sink.forget(attempt)

    async def _run_begun(self, attempt: Attempt, temperature: float | None) -> Trajectory:
        earlier = self._sink.earlier(attempt)
        if earlier is not None and earlier.ended is not None:
            return earlier.ended
        sampling = {role: self._sampling_of(role, temperature) for role in {*self._role_engines, "policy"}}
        for engine in self.engines:
            engine.join(attempt.uid)
        try:
            trajectory = await self._resumed(attempt, sampling, earlier)
        finally:
            for engine in self.engines:
                engine.leave(attempt.uid)
        if attempt.link is not None:
            trajectory = replace(trajectory, metadata={**trajectory.metadata, **attempt.link.metadata})
        if attempt.branch is not None and (problem := misses(attempt.branch, trajectory)):
            failed = replace(trajectory, status=Status.FAILED, error=trajectory.error or problem)
            trajectory = with_failure(failed, Failure.INFRASTRUCTURE)  # says nothing about the policy
        if self._score is not None:
            trajectory = await self._score(trajectory)
        try:
            await self._sink.finish(trajectory, attempt)
        except EngineError as error:
            failed = replace(trajectory, status=Status.FAILED, error=str(error), reward=None)
            return with_failure(failed, Failure.INFRASTRUCTURE)
        return trajectory

    async def _resumed(
        self, attempt: Attempt, sampling: Mapping[str, SamplingParams], earlier: Earlier | None
    ) -> Trajectory:
        """Resume `attempt` from the record of an earlier process, or start it again if that is impossible."""
        if earlier is None or not earlier.begun:
            return await self._run_flow(self._session(attempt, sampling, earlier), sampling["policy"], attempt)
        problem = f"the flow '{self._config.name}' cannot be resumed" if self._flow.resume == "none" else ""
        if not problem:
            session = self._session(attempt, sampling, earlier)
            trajectory = await self._run_flow(session, sampling["policy"], attempt)
            problem = divergence(session)
            if not problem:
                added: dict[str, Any] = {
                    RESUMED: {"steps": len(earlier.steps), "actions": earlier.actions.answered},
                    **({IN_DOUBT: True} if earlier.actions.in_doubt else {}),
                }
                return replace(trajectory, metadata={**trajectory.metadata, **added})
        _log.warning("trajectory '%s' starts again: %s", attempt.uid, problem)
        await self._sink.restart(attempt)
        session = self._session(attempt, sampling, self._sink.earlier(attempt))
        trajectory = await self._run_flow(session, sampling["policy"], attempt)
        return replace(trajectory, metadata={**trajectory.metadata, RESUMED: {"started_again": problem}})

    def _session(
        self, attempt: Attempt, sampling: Mapping[str, SamplingParams], earlier: Earlier | None
    ) -> FlowSession:
        answered = () if earlier is None else earlier.steps
        recorder, role_engines = self._sink.recorder(attempt), self._engines_of(attempt, answered)
        if earlier is not None and earlier.begun:
            recorder.replay(earlier.steps, role_engines)
        return FlowSession(
            task=attempt.task,
            recorder=recorder,
            role_engines=role_engines,
            tools=self._toolbox.session(attempt.mask_seed),
            sampling=sampling,
            score=self._score,
            endpoint=self._sink.endpoint(attempt) or self._endpoint,
            actions=None if earlier is None else earlier.actions,
            earlier_calls=None if attempt.branch is None else shared_calls(attempt.branch),
            database=None if earlier is None else earlier.database,
        )

    async def _run_flow(self, session: FlowSession, sampling: SamplingParams, attempt: Attempt) -> Trajectory:
        try:
            return await self._attempt(session, sampling, attempt)
        finally:
            await _close_resources(session)

    async def _attempt(self, session: FlowSession, sampling: SamplingParams, attempt: Attempt) -> Trajectory:
        fields = {key: value for key, value in attempt.task.metadata.items() if key not in HIDDEN}
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
                await session.tools.open(session.resources)
                await count_calls_with_keys(session)
                flow = self._flow(session, self._config.settings)
                await flow.run(sampling, **{**fields, **own})
            check_replayed(session)
            return flow.trajectory()
        except UserError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the whole rollout is being cancelled
            return _ended(session, flow, Status.FAILED, "the flow was cancelled from within")
        except ServiceError as error:
            return with_failure(_ended(session, flow, Status.FAILED, str(error)), Failure.INFRASTRUCTURE)
        except MidstreamError as error:
            return _ended(session, flow, Status.FAILED, str(error))
        except Exception as error:  # an error in a flow fails its own trajectory, never the run
            if isinstance(error, TimeoutError) and limit.expired():
                late = f"took longer than rollout.timeout_s = {self._timeout_s:g} s"
                return _ended(session, flow, Status.TIMED_OUT, late)
            failed = _ended(session, flow, Status.FAILED, f"{type(error).__name__}: {error}")
            return with_failure(failed, Failure.AGENT, error)

    def _engines_of(self, attempt: Attempt, answered: Sequence[Step]) -> Mapping[str, RoleEngine]:
        if attempt.branch is not None:
            return branch_engines(self._role_engines, attempt.branch, answered)
        if attempt.rerun is not None:
            return rerun_engines(self._role_engines, attempt.rerun, answered)
        return self._role_engines

    def _sampling_of(self, role: str, temperature: float | None) -> SamplingParams:
        settings: dict[str, Any] = self._sampling.model_dump()
        if role in self._config.roles:
            settings |= self._config.roles[role].sampling.model_dump(exclude_none=True)
        if temperature is not None:
            settings["temperature"] = temperature
        return SamplingParams(**settings)


def _not_begun(attempt: Attempt, error: EngineError) -> Trajectory:
    """Return a failed trajectory for an attempt whose sink could not be reached."""
    failed = Trajectory(
        uid=attempt.uid, prompt_uid=attempt.prompt_uid, task=attempt.task, status=Status.FAILED, error=str(error)
    )
    return with_failure(failed, Failure.INFRASTRUCTURE)


def _ended(session: FlowSession, flow: AgentFlowBase | None, status: Status, error: str) -> Trajectory:
    """Return the trajectory of a failed flow. If the flow's own `trajectory` raises, use the recorded steps."""
    error = text_without_secrets(error)
    if flow is not None:
        try:
            return flow.trajectory(status, error)
        except Exception as broken:  # the flow's `metadata()` may need attributes that `run` never set
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


async def _close_resources(session: FlowSession) -> None:
    """Close the flow's resources. A failure to close is logged and does not change the trajectory."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await session.resources.aclose()
    except Exception as error:
        reason = text_without_secrets(f"{type(error).__name__}: {error}")
        _log.warning("trajectory '%s': a resource did not close: %s", session.recorder.trajectory_uid, reason)
