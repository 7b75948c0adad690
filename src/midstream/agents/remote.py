"""Flows that call a gateway elsewhere: what they say is sampled and recorded there, and they run here."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from midstream.agents.endpoint import AgentEndpoint, EndpointAddress
from midstream.core import clock
from midstream.core.errors import ConfigError, EngineError, PromptTooLong
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.engines.base import Completion, Request
from midstream.record.recorder import Call, Recorder, RoleEngine

if TYPE_CHECKING:
    from midstream.agents.rollout import Attempt

RETRIES = 5
"""Times a call is made again when the gateway is busy, restarting or not there, after 0.5, 1, 2, ... s."""
FIRST_WAIT_S = 0.5
HEARTBEAT_S = 60.0
"""How often a gateway is told that flows which do not call live."""
PATIENCE_S = 600.0
"""How long a gateway that is busy, or waits for its trainer, may tell us to come back later."""


class Refused(EngineError):
    """A gateway refused a request. `code` is its word for why, such as `trajectory_ended`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class GatewayClient:
    """The native API of a gateway. Every call that changes something may be made again: it counts once.

    `key_env` names the environment variable that holds a key of the gateway, which opens trajectories; what is about
    one trajectory is sent with its `token`, where one is given. Raises `Refused` with what the gateway said, and
    `EngineError` when it does not answer.
    """

    def __init__(self, url: str, key_env: str | None = None, timeout_s: float = 600.0) -> None:
        headers: dict[str, str] = {}
        if key_env is not None:
            key = os.environ.get(key_env)
            if not key:
                raise ConfigError(f"the environment variable {key_env} holds no key for {url}", f"export {key_env}=...")
            headers["Authorization"] = f"Bearer {key}"
        self.url = url.rstrip("/")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout_s, limits=limits)

    async def init_trajectory(self, **opening: Any) -> dict[str, Any]:
        """Open a trajectory; `opening` are the fields of `POST /init_trajectory`."""
        return await self.post("/init_trajectory", opening)

    async def generate(self, key: str, token: str | None = None, **asked: Any) -> dict[str, Any]:
        """A response; `asked` are the fields of `POST /generate`."""
        return await self.post("/generate", asked, key, token)

    async def submit_steps(self, steps: list[dict[str, Any]], channel: str, token: str | None = None) -> int:
        """Hand steps in; how many were new."""
        return (await self.post(f"/submit_steps?channel={channel}", {"steps": steps}, token=token))["accepted"]

    async def complete(self, trajectory_uid: str, token: str | None = None, **fields: Any) -> dict[str, Any]:
        """End a trajectory; `fields` are those of `POST /complete_trajectory`."""
        return await self.post(f"/complete_trajectory/{trajectory_uid}", fields, token=token)

    async def trajectory(self, trajectory_uid: str, token: str | None = None) -> dict[str, Any]:
        """How a trajectory stands."""
        return await self._send("GET", f"/trajectories/{trajectory_uid}", token=token)

    async def model(self) -> str:
        """The name of the model it serves."""
        return (await self._send("GET", "/v1/models"))["data"][0]["id"]

    async def post(
        self, path: str, body: Mapping[str, Any], key: str | None = None, token: str | None = None
    ) -> dict[str, Any]:
        """`POST path`, again while the gateway cannot answer."""
        return await self._send("POST", path, body, key, token)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        token: str | None = None,
    ) -> dict[str, Any]:
        problem, failures, until = "", 0, clock.monotonic() + PATIENCE_S
        while failures <= RETRIES:
            try:
                headers = {"Idempotency-Key": key} if key else {}
                if token is not None:
                    headers["Authorization"] = f"Bearer {token}"
                response = await self._http.request(method, path, json=body, headers=headers)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response.json()
                problem, code = _problem(response)
                if response.status_code == 429 and clock.monotonic() < until:
                    await clock.sleep(float(response.headers.get("Retry-After", FIRST_WAIT_S)))
                    continue
                if code == "context_length_exceeded":
                    raise PromptTooLong(problem)
                if response.status_code < 500 and response.status_code != 429:
                    raise Refused(f"the gateway {self.url} refused: {problem}", code)
            failures += 1
            if failures <= RETRIES:
                await clock.sleep(FIRST_WAIT_S * 2 ** (failures - 1))
        raise EngineError(f"the gateway {self.url} did not answer after {failures} tries; last: {problem}")

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _problem(response: httpx.Response) -> tuple[str, str]:
    """What a gateway said of an error: its message, and its code (empty where it has none)."""
    try:
        error = response.json()["error"]
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:300], ""


class RemoteRecorder(Recorder):
    """A recorder whose calls a gateway answers and records. It keeps the steps as they came back. `token` opens the
    trajectory there."""

    def __init__(
        self, trajectory_uid: str, prompt_uid: str, *, seed: int, client: GatewayClient, token: str | None = None
    ) -> None:
        super().__init__(trajectory_uid, prompt_uid, seed=seed)
        self._client, self._token = client, token

    async def call(self, role_engine: RoleEngine, call: Call) -> tuple[Step, Completion]:
        sampling = call.sampling
        place = self._take_place()
        try:
            reply = await self._client.generate(
                f"{self.trajectory_uid}/{uuid.uuid4().hex}",  # never one of a call that was given up
                self._token,
                trajectory_uid=self.trajectory_uid,
                prompt_uid=self.prompt_uid,
                messages=list(call.messages),
                tools=list(call.tools) or None,
                sampling_params=asdict(sampling),
                role=call.role,
            )
        except BaseException:
            self._give_up(place)
            raise
        step = Step(
            prompt_ids=tuple(reply["prompt_ids"]),
            response_ids=tuple(reply["response_ids"]),
            rollout_log_probs=tuple(reply["log_probs"]),
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=place.step_index,
            policy_version=reply["policy_version"],
            metadata={**call.metadata, **({"sampling": reply["sampling"]} if "sampling" in reply else {})},
            role=call.role,
            trainable=role_engine.trainable and bool(reply["response_ids"]),
            temperature=sampling.temperature or 1.0,
            messages=call.messages,
            tools=call.tools,
            text=reply["response_text"],
            finish_reason=FinishReason(reply["stop_reason"]),
        )
        self._answered(step)
        completion = Completion(
            ids=step.response_ids,
            log_probs=step.rollout_log_probs or (),
            text=step.text,
            finish_reason=FinishReason(step.finish_reason),
            policy_version=step.policy_version,
        )
        return step, completion


class RemoteEngine:
    """The engine of a flow whose calls a gateway answers: it is never asked itself."""

    name, policy_version, context_length = "gateway", 0, 1 << 20

    async def generate(self, request: Request) -> Completion:
        raise EngineError("the gateway answers this flow's calls")

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...


class RemoteEndpoint:
    """Lets a black-box agent call a gateway elsewhere. `opened` is what it answered when the trajectory was opened."""

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
        found = await self._client.trajectory(recorder.trajectory_uid, owner)
        address.completed = found["state"] != "running"
        address.last_reply = found["answer"]
        if address.completed:
            address.answer, address.error = found["answer"], found["error"]
            address.reward, address.rewards = found["reward"], found["rewards"]


class RemoteSink:
    """Trajectories that are recorded by a gateway elsewhere."""

    def __init__(self, client: GatewayClient, *, group_size: int, model: str) -> None:
        self._client, self._group_size, self._model = client, group_size, model
        self._open: dict[str, dict[str, Any]] = {}
        """What the gateway answered when each trajectory under way was opened, by uid."""
        self._beating: asyncio.Task[None] | None = None

    def recorder(self, attempt: Attempt) -> Recorder:
        token = self._open[attempt.uid]["owner_token"]
        return RemoteRecorder(attempt.uid, attempt.prompt_uid, seed=attempt.seed, client=self._client, token=token)

    def endpoint(self, attempt: Attempt) -> AgentEndpoint:
        return RemoteEndpoint(self._client, self._open[attempt.uid], self._model)

    async def begin(self, attempt: Attempt) -> None:
        self._open[attempt.uid] = await self._client.init_trajectory(**self._opening(attempt))
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        """Say that flows live which make no calls for long, as their tools take time, while there are any."""
        while self._open:
            await clock.sleep(HEARTBEAT_S)
            for uid, opened in list(self._open.items()):
                with suppress(EngineError):  # it has ended, or what comes next will meet the same trouble
                    await self._client.post(f"/trajectories/{uid}/heartbeat", {}, token=opened["owner_token"])

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None:
        """Tell the gateway how it ended, and what each step earned. One that its agent has completed stays as it is."""
        token = self._open.pop(trajectory.uid)["owner_token"]
        earned = [_payload(step) for step in trajectory.steps if step.reward is not None or step.metadata]
        try:
            if earned:
                await self._client.submit_steps(earned, attempt.channel, token)
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
    """A step as `POST /submit_steps` takes it."""
    return {
        "prompt_ids": list(step.prompt_ids),
        "response_ids": list(step.response_ids),
        "rollout_log_probs": None if step.rollout_log_probs is None else list(step.rollout_log_probs),
        "reward": step.reward,
        "trajectory_uid": step.trajectory_uid,
        "prompt_uid": step.prompt_uid,
        "step_index": step.step_index,
        "policy_version": step.policy_version,
        "temperature": step.temperature,
        "role": step.role,
        "metadata": dict(step.metadata),
    }
