"""What the gateway's own endpoints do, without HTTP: open, register, complete, generate, submit, score, comment."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from midstream.core import clock
from midstream.core.errors import UserError
from midstream.core.toolsets import tool_schema
from midstream.core.types import Constraint, Status, Step, ToolSchema, Trajectory
from midstream.gateway.config import GatewayConfig
from midstream.gateway.dialects.tools import offer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.requests import (
    CompleteRequest,
    CurationRequest,
    FeedbackRequest,
    GenerateRequest,
    Opened,
    OpenRequest,
    RegisterRequest,
    RewardRequest,
    SubmitRequest,
)
from midstream.gateway.limits.callers import Caller
from midstream.gateway.limits.length import check_length
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory, Opening, ended
from midstream.gateway.sessions.asks import Ask
from midstream.gateway.sessions.trajectories import COMPLETION_KEY
from midstream.record.feedback import Feedback
from midstream.record.recorder import Call


class Endpoints:
    """The native API of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def not_ready(self) -> str:
        """Why calls would not be answered at once; empty when they would."""
        gate = self.gateway.gate
        return gate.closed or ("paused" if gate.paused else "")

    async def open(self, asked: OpenRequest, caller: Caller, base: str, key: str | None) -> Opened:
        """Begin a trajectory. The same idempotency key gives the same one."""
        caller.must_be_admin()
        gateway = self.gateway
        named = f"midstream:{caller.key or ''}:{key}"  # the keys that two users choose are not the same key
        uid = asked.trajectory_uid or (uuid.uuid5(uuid.NAMESPACE_URL, named).hex if key else None)
        if uid is None or not gateway.trajectories.is_open(uid):
            await gateway.check_backpressure(asked.channel)
        live = await gateway.trajectories.open(
            Opening(
                uid=uid,
                prompt_uid=asked.prompt_uid,
                channel=asked.channel,
                group_size=asked.group_size,
                task=asked.task.model_dump(exclude_none=True),
                metadata=asked.metadata,
                key=caller.key,
            ),
            alike=True,
        )
        expires_at = clock.time() + asked.token_lifetime_s
        return Opened(
            trajectory_uid=live.uid,
            prompt_uid=live.prompt_uid,
            channel=live.channel,
            base_url=f"{gateway.config.url or base}/{live.uid}/{live.prompt_uid}/v1",
            token=gateway.signer.issue(live.uid, expires_at),
            owner_token=gateway.signer.issue(live.uid, expires_at, "owner"),
            expires_at=expires_at,
        )

    async def register(self, uid: str, prompt_uid: str, asked: RegisterRequest, caller: Caller) -> None:
        """Add to what is known of a trajectory, or begin one that is not there, with a key. An agent may not: it would
        choose what it is graded against."""
        caller.must_own(uid, "register its trajectory")
        opening = Opening(
            uid=uid,
            prompt_uid=prompt_uid,
            channel=asked.channel,
            group_size=asked.group_size,
            task=asked.task.model_dump(exclude_none=True),
            metadata=asked.metadata,
        )
        await self.gateway.trajectories.register(await self._opened(opening, caller), opening)

    async def complete(
        self, uid: str, prompt_uid: str | None, asked: CompleteRequest, caller: Caller, key: str | None
    ) -> dict[str, Any]:
        """End a trajectory. The same idempotency key gets the same answer. An agent says what its answer is and how it
        ended, never what that is worth."""
        caller.must_reach(uid)
        for name in ("reward", "rewards"):
            if getattr(asked, name) is not None:
                caller.must_own(uid, f"set the '{name}' of its trajectory")
        try:
            done = await self._complete(uid, prompt_uid, asked, key)
        except ApiError as error:
            if key is None or error.code != "trajectory_ended":
                raise
            done = await self.gateway.trajectories.look_up(uid)
            if done.metadata.get(COMPLETION_KEY) != key:
                raise
        return {"status": "ok", **_described(done, caller)}

    async def _complete(self, uid: str, prompt_uid: str | None, asked: CompleteRequest, key: str | None) -> Trajectory:
        live = await self.gateway.trajectories.get(uid, prompt_uid)
        if asked.channel not in (None, live.channel):
            raise ApiError(409, f"trajectory '{uid}' is in the channel '{live.channel}'", param="channel")
        return await self.gateway.trajectories.close(
            live,
            Status(asked.status),
            reward=asked.reward,
            rewards=asked.rewards,
            answer=asked.answer,
            error=asked.error,
            key=key,
        )

    async def describe(self, uid: str, caller: Caller) -> dict[str, Any]:
        """How a trajectory stands."""
        caller.must_reach(uid)
        return _described(await self.gateway.trajectories.look_up(uid), caller)

    async def generate(self, asked: GenerateRequest, caller: Caller, key: str | None) -> dict[str, Any]:
        """A response to messages or token ids, as a step of a trajectory when one is named."""
        gateway, params = self.gateway, asked.sampling_params or asked
        if asked.sampling_params is not None and asked.sampling_params.model is not None:
            gateway.model_name(asked.sampling_params.model)
        gateway.model_name(asked.model)
        sampling = params.sampling(gateway, params.max_tokens)
        prompt_ids = None if asked.prompt_ids is None else gateway.checked_ids(asked.prompt_ids, "prompt_ids")
        if asked.trajectory_uid is None:
            if prompt_ids is None:
                raise ApiError(400, "messages need a trajectory_uid", param="trajectory_uid")
            caller.must_be_admin()
            if key is not None:
                raise ApiError(400, "the header Idempotency-Key needs a trajectory_uid: without one nothing is kept")
            step, message = await gateway.calls.generate(prompt_ids, sampling, caller), None
        else:
            caller.must_reach(asked.trajectory_uid)
            live = await self._opened(Opening(uid=asked.trajectory_uid, prompt_uid=asked.prompt_uid), caller)
            tools = [
                tool_schema(t.function.name, t.function.description, t.function.parameters) for t in asked.tools or ()
            ]
            declared, constraint = _constrained(asked, tools, gateway)
            call = Call(
                prompt_ids=prompt_ids,
                messages=tuple(message.plain() for message in asked.messages or ()),
                tools=declared,
                constraint=constraint,
                sampling=sampling,
                role=asked.role,
            )
            ask = Ask(call=call, key=key, role=asked.role)
            await gateway.calls.must_fit(live, ask)
            (answer,) = await gateway.calls.ask(live, ask, caller)
            step, message = answer.step, None if asked.messages is None else answer.message()
        return {
            "response_text": step.text,
            "token_ids": step.response_ids,
            "response_ids": step.response_ids,
            "prompt_ids": step.prompt_ids,
            "log_probs": step.rollout_log_probs,
            "stop_reason": str(step.finish_reason),
            "policy_version": step.policy_version,
            "step_index": step.step_index,
            **({"message": message} if message else {}),
            **({"sampling": step.metadata["sampling"]} if "sampling" in step.metadata else {}),
            **({} if step.constraint is None else {"constraint": asdict(step.constraint)}),
        }

    async def submit(self, asked: SubmitRequest, channel: str | None, caller: Caller) -> dict[str, Any]:
        """Take steps in, from the owner of their trajectory. What was sampled here gets their reward and metadata;
        others are recorded as they are. The last step of a trajectory ends it. A step that is there already counts
        once."""
        for number, payload in enumerate(asked.steps):
            await asyncio.sleep(0)  # there may be many, with many tokens
            caller.must_own(payload.trajectory_uid, "hand in steps of its trajectory")
            self.gateway.checked_ids(payload.prompt_ids, f"steps.{number}.prompt_ids")
            self.gateway.checked_ids(payload.response_ids, f"steps.{number}.response_ids")
            self.gateway.check_step(payload.step(), f"steps.{number}")
        accepted = 0
        for payload in asked.steps:
            opening = Opening(uid=payload.trajectory_uid, prompt_uid=payload.prompt_uid, channel=channel)
            accepted += await self._submit(payload.step(), opening, caller)
        return {"accepted": accepted}

    async def _submit(self, step: Step, opening: Opening, caller: Caller) -> int:
        trajectories = self.gateway.trajectories
        over = await trajectories.ended_step(step)
        if over is not None:
            if over:
                return 0
            self.gateway.metrics.late.inc()
            await self.gateway.kept.trajectories.append(step, opening.channel or self.gateway.config.channel)
            return 1
        live = await self._opened(opening, caller)
        if opening.channel not in (None, live.channel):
            raise ApiError(409, f"trajectory '{live.uid}' is in the channel '{live.channel}'", param="channel")
        fresh = await trajectories.add(live, step)
        if live.recorder.already_ended:
            self.gateway.metrics.late.inc()
        if step.is_last and live.ended is None:
            await trajectories.close(live)
        return int(fresh)

    async def compute_reward(self, asked: RewardRequest, caller: Caller) -> dict[str, Any]:
        """What a trajectory would earn, were what is given its last word. Not for its agent, which could ask until it
        knows the answer."""
        gateway = self.gateway
        if asked.trajectory_uid is None:
            caller.must_be_admin()
        else:
            caller.must_own(asked.trajectory_uid, "ask what its trajectory would earn")
        if gateway.reward is None:
            raise ApiError(503, "this gateway has no reward function; declare `reward` in its config", code="no_reward")
        answer = None
        if asked.messages:
            messages = [message.plain() for message in asked.messages]
            await check_length(gateway.tokenizer, gateway.role_engine.engine.context_length, messages)
            said = [message["content"] for message in messages if message["role"] == "assistant"]
            answer = said[-1] if said else None
        elif asked.response_ids is not None:
            answer = gateway.tokenizer.text_of(gateway.checked_ids(asked.response_ids, "response_ids"))
        if asked.trajectory_uid is not None:
            trajectory = await gateway.trajectories.look_up(asked.trajectory_uid)
        else:
            trajectory = Trajectory(uid="", prompt_uid="", task=_no_task(gateway.config))
        fields = {**asked.extra_fields, **asked.dataset_fields}
        task = replace(
            trajectory.task,
            answer=fields.pop("answer", trajectory.task.answer),
            metadata={**trajectory.task.metadata, **fields},
        )
        known = trajectory.answer if answer is None else str(answer)
        turns = trajectory.turns if asked.num_turns is None else asked.num_turns
        scored = await gateway.reward.score(
            replace(trajectory, task=task, answer=known, turns=turns, status=Status.COMPLETED)
        )
        return {"reward_score": scored.reward, "reward_extra_info": dict(scored.rewards), "error": scored.error}

    async def feedback(self, uid: str, asked: FeedbackRequest, caller: Caller, key: str | None) -> dict[str, Any]:
        """Keep what a person thought. What an agent thinks of itself is not feedback."""
        caller.must_own(uid, "give feedback on itself")
        await self._must_hold(uid, asked.step_index)
        try:
            Feedback(trajectory_uid=uid, kind=asked.kind, value=asked.value, text=asked.text)
        except UserError as error:
            raise ApiError(400, f"{error.message}: {error.hint}", param="value") from None
        await asyncio.to_thread(
            self.gateway.kept.annotations.add_feedback,
            uid,
            asked.kind,
            asked.value,
            text=asked.text,
            step_index=asked.step_index,
            key=key,
        )
        return {"status": "ok"}

    async def curate(self, uid: str, asked: CurationRequest, caller: Caller) -> dict[str, Any]:
        """Set what training is to do with a trajectory or a step."""
        caller.must_be_admin()
        await self._must_hold(uid, asked.step_index)
        await asyncio.to_thread(
            self.gateway.kept.annotations.curate,
            uid,
            asked.step_index,
            trainable=asked.trainable,
            quality=asked.quality,
            tags=asked.tags,
            note=asked.note,
        )
        return {"status": "ok"}

    async def _must_hold(self, uid: str, step_index: int | None) -> None:
        """`ApiError` 404 when there is no such trajectory, or it has no such step."""
        trajectory = await self.gateway.trajectories.look_up(uid)
        if step_index is not None and all(step.step_index != step_index for step in trajectory.steps):
            raise ApiError(404, f"trajectory '{uid}' has no step {step_index}", param="step_index")

    async def _opened(self, opening: Opening, caller: Caller) -> ActiveTrajectory:
        """The trajectory, begun here and now when it is not there and the caller may."""
        assert opening.uid is not None
        trajectories = self.gateway.trajectories
        try:
            live = await trajectories.get(opening.uid, opening.prompt_uid)
        except ApiError as error:
            if error.status != 404 or not caller.admin or await trajectories.is_known(opening.uid):
                raise
            await self.gateway.check_backpressure(opening.channel)
            live = await trajectories.open(replace(opening, key=caller.key))
        if live.ended is not None:
            raise ended(live)
        return live


def _constrained(
    asked: GenerateRequest, tools: Sequence[ToolSchema], gateway: Gateway
) -> tuple[tuple[ToolSchema, ...], Constraint | None]:
    """The tools to declare, and the constraint of the response."""
    if asked.constraint is not None:
        return (), Constraint(kind=asked.constraint.kind, grammar=asked.constraint.grammar)
    return offer([("", tool) for tool in tools]).hold(
        gateway.tokenizer, asked.tool_choice or "auto", asked.response_format, parallel=True
    )


def _described(trajectory: Trajectory, caller: Caller) -> dict[str, Any]:
    """How a trajectory stands, as `caller` may know it: an agent does not see what it earned."""
    graded = {"reward": trajectory.reward, "rewards": dict(trajectory.rewards)}
    return {
        "trajectory_uid": trajectory.uid,
        "prompt_uid": trajectory.prompt_uid,
        "state": str(trajectory.status),
        "steps": len(trajectory.steps),
        "branches": sum(bool(step.branch_reason) for step in trajectory.steps),
        "answer": trajectory.answer,
        **(graded if caller.may_grade(trajectory.uid) else {}),
        "error": trajectory.error,
    }


def _no_task(config: GatewayConfig) -> Any:
    from midstream.core.types import Task

    return Task(id="unnamed", prompt="", metadata={"channel": config.channel})
