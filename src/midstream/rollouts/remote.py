"""Flows that run here against a remote gateway, which samples and records their model calls."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

from midstream.agents.endpoint import AgentEndpoint, EndpointAddress
from midstream.core import clock
from midstream.core.errors import EngineError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, FinishReason, Message, Step, Task, ToolSchema, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.formats import ToolChoice
from midstream.record.recorder import Call, Recorder, RoleEngine
from midstream.record.replies import ChatStep, reply_from
from midstream.rollouts.attempts import Attempt
from midstream.rollouts.client import GatewayClient, Refused

HEARTBEAT_S = 60.0
"""Seconds between heartbeats for the trajectories that are open."""


class RemoteRecorder(Recorder):
    """Sends calls to a gateway, which samples and records them, and keeps the returned steps. `token` authorises the
    trajectory's calls."""

    def __init__(
        self, trajectory_uid: str, prompt_uid: str, *, seed: int, client: GatewayClient, token: str | None = None
    ) -> None:
        super().__init__(trajectory_uid, prompt_uid, seed=seed)
        self._client, self._token = client, token

    async def chat(
        self,
        role_engine: RoleEngine,
        messages: Sequence[Message],
        sampling: SamplingParams,
        *,
        role: str = "policy",
        tools: Sequence[ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        response_format: Mapping[str, Any] | Constraint | None = None,
        key: str = "",
    ) -> ChatStep:
        """Make one model call. The gateway has the model's tokenizer: it renders the prompt and parses the reply. `key`
        has no effect: a remote attempt that was interrupted starts again."""
        fields: dict[str, Any] = {"tool_choice": None if tool_choice == "auto" else tool_choice}
        if isinstance(response_format, Constraint):
            fields["constraint"] = asdict(response_format)
        elif response_format is not None:
            fields["response_format"] = dict(response_format)
        call = Call(messages=tuple(messages), sampling=sampling, role=role, tools=tuple(tools))
        step, message = await self._generate(role_engine, call, fields)
        return ChatStep.of(step, lambda _: reply_from(message))

    async def call(self, role_engine: RoleEngine, call: Call) -> tuple[Step, Completion]:
        constraint = {} if call.constraint is None else {"constraint": asdict(call.constraint)}
        step, _ = await self._generate(role_engine, call, constraint)
        completion = Completion(
            ids=step.response_ids,
            log_probs=step.rollout_log_probs or (),
            text=step.text,
            finish_reason=FinishReason(step.finish_reason),
            policy_version=step.policy_version,
            over_allowed=step.constraint is not None,
        )
        return step, completion

    async def _generate(self, role_engine: RoleEngine, call: Call, fields: Mapping[str, Any]) -> tuple[Step, Message]:
        """Make one model call, with further `fields` of `POST /generate`. Returns the step, and its message as the
        gateway parsed it."""
        sampling = call.sampling
        place = self._reserve_index()
        try:
            reply = await self._client.generate(
                f"{self.trajectory_uid}/{uuid.uuid4().hex}",  # a new key, so that no abandoned call is returned
                self._token,
                trajectory_uid=self.trajectory_uid,
                prompt_uid=self.prompt_uid,
                messages=list(call.messages),
                tools=list(call.tools) or None,
                sampling_params=asdict(sampling),
                role=call.role,
                **fields,
            )
        except BaseException:
            self._abandon(place)
            raise
        step = Step(
            prompt_ids=tuple(reply["prompt_ids"]),
            response_ids=tuple(reply["response_ids"]),
            rollout_log_probs=tuple(reply["log_probs"]),
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=place.step_index,
            policy_version=reply["policy_version"],
            adapter=reply.get("adapter", ""),
            metadata={**call.metadata, **({"sampling": reply["sampling"]} if "sampling" in reply else {})},
            role=call.role,
            trainable=role_engine.trainable and bool(reply["response_ids"]),
            temperature=sampling.temperature or 1.0,
            constraint=Constraint(**reply["constraint"]) if "constraint" in reply else None,
            messages=call.messages,
            tools=call.tools,
            text=reply["response_text"],
            finish_reason=FinishReason(reply["stop_reason"]),
        )
        self._answered(step)
        return step, reply["message"]


class RemoteEngine:
    """Placeholder engine for flows whose calls are answered by a gateway. Raises if it is called."""

    name, policy_version, context_length = "gateway", 0, 1 << 20

    async def generate(self, request: Request) -> Completion:
        raise EngineError("this flow's calls go to the gateway, not to an engine in this process")

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...


class RemoteEndpoint:
    """Gives black-box agents the address of a remote gateway. `opened` is its reply to `POST /init_trajectory`."""

    def __init__(self, client: GatewayClient, opened: Mapping[str, Any], model: str) -> None:
        self._client, self._opened, self._model = client, opened, model

    @asynccontextmanager
    async def admit(
        self,
        recorder: Recorder,
        task: Task,
        role_engines: Mapping[str, RoleEngine],
        sampling: Mapping[str, SamplingParams],
    ) -> AsyncIterator[EndpointAddress]:
        opened = self._opened
        owner = opened["owner_token"]
        address = EndpointAddress(
            base_url=opened["base_url"], token=opened["token"], model=self._model, owner_token=owner
        )
        yield address
        state = await self._client.trajectory(recorder.trajectory_uid, owner)
        address.completed = state["state"] != "running"
        address.last_reply = state["answer"]
        if address.completed:
            address.answer, address.error = state["answer"], state["error"]
            address.reward, address.rewards = state["reward"], state["rewards"]


class RemoteSink:
    """A `TrajectorySink` that records at a remote gateway.

    `group_size` tells the gateway when a group is complete; `model` is the name of its model."""

    def __init__(self, client: GatewayClient, *, group_size: int, model: str) -> None:
        self._client, self._group_size, self._model = client, group_size, model
        self._open: dict[str, dict[str, Any]] = {}
        """Replies to `POST /init_trajectory` of the open trajectories, by uid."""
        self._heartbeat: asyncio.Task[None] | None = None

    def recorder(self, attempt: Attempt) -> Recorder:
        token = self._open[attempt.uid]["owner_token"]
        return RemoteRecorder(attempt.uid, attempt.prompt_uid, seed=attempt.seed, client=self._client, token=token)

    def endpoint(self, attempt: Attempt) -> AgentEndpoint:
        return RemoteEndpoint(self._client, self._open[attempt.uid], self._model)

    async def begin(self, attempt: Attempt) -> None:
        self._open[attempt.uid] = await self._client.init_trajectory(**self._opening(attempt))
        if self._heartbeat is None or self._heartbeat.done():
            self._heartbeat = asyncio.create_task(self._send_heartbeats())

    async def _send_heartbeats(self) -> None:
        """Keep open trajectories alive while their flows make no calls, such as during a slow tool."""
        while self._open:
            await clock.sleep(HEARTBEAT_S)
            for uid, opened in list(self._open.items()):
                with suppress(EngineError):  # the trajectory has ended, or its next call raises the same error
                    await self._client.post(f"/trajectories/{uid}/heartbeat", {}, token=opened["owner_token"])

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None:
        """Submit step rewards and metadata, and complete the trajectory, unless its agent has completed it."""
        token = self._open[trajectory.uid]["owner_token"]
        steps = [_payload(step) for step in trajectory.steps if step.reward is not None or step.metadata]
        try:
            if steps:
                await self._client.submit_steps(steps, attempt.channel, token)
            await self._client.complete(
                trajectory.uid,
                token,
                reward=trajectory.reward,
                rewards={name: value for name, value in trajectory.rewards.items() if value is not None} or None,
                answer=trajectory.answer,
                status=str(trajectory.status),
                error=trajectory.error,
            )
        except Refused as error:
            if error.code != "trajectory_ended":
                raise

    def forget(self, attempt: Attempt) -> None:
        self._open.pop(attempt.uid, None)

    def earlier(self, attempt: Attempt) -> None:
        """Attempts at a gateway are not resumed."""

    async def restart(self, attempt: Attempt) -> None: ...

    def _opening(self, attempt: Attempt) -> dict[str, Any]:
        task = attempt.task
        prompt = task.prompt if isinstance(task.prompt, str) else list(task.prompt)
        return {
            "trajectory_uid": attempt.uid,
            "prompt_uid": attempt.prompt_uid,
            "channel": attempt.channel,
            "group_size": self._group_size,
            "task": {**task.metadata, "id": task.id, "prompt": prompt, "answer": task.answer, "kind": task.kind},
        }


def _payload(step: Step) -> dict[str, Any]:
    """A step in the format of `POST /submit_steps`."""
    return {
        "prompt_ids": list(step.prompt_ids),
        "response_ids": list(step.response_ids),
        "rollout_log_probs": None if step.rollout_log_probs is None else list(step.rollout_log_probs),
        "reward": step.reward,
        "trajectory_uid": step.trajectory_uid,
        "prompt_uid": step.prompt_uid,
        "step_index": step.step_index,
        "policy_version": step.policy_version,
        "adapter": step.adapter,
        "temperature": step.temperature,
        "role": step.role,
        "metadata": dict(step.metadata),
    }
