"""The gateway's own endpoints for agents that handle tokens and rewards: generate, submit steps, compute rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from midstream.core.toolsets import tool_schema
from midstream.core.types import Constraint, Status, Step, Task, Trajectory
from midstream.gateway.dialects.tools import offer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.request_bodies import GenerateRequest, RewardRequest, SubmitRequest
from midstream.gateway.limits.callers import Caller
from midstream.gateway.limits.length import check_length
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.call_request import CallRequest
from midstream.gateway.sessions.lifecycle import check_channel, get_or_open
from midstream.gateway.sessions.opening import Opening
from midstream.record.recorder import Call


async def generate(gateway: Gateway, body: GenerateRequest, caller: Caller, key: str | None) -> dict[str, Any]:
    """Sample a response to messages or token ids, as a step of a trajectory if one is named."""
    params = body.sampling_params or body
    for name in (params.model, body.model):
        gateway.model_name(name)
    sampling = params.sampling(gateway, params.max_tokens)
    prompt_ids = None if body.prompt_ids is None else gateway.checked_ids(body.prompt_ids, "prompt_ids")
    if body.trajectory_uid is None:
        if prompt_ids is None:
            raise ApiError(400, "messages need a trajectory_uid", param="trajectory_uid")
        caller.require_admin()
        if key is not None:
            raise ApiError(400, "the header Idempotency-Key needs a trajectory_uid: without one nothing is recorded")
        model = params.model or body.model or ""
        return _described(await gateway.calls.generate(prompt_ids, sampling, caller, model))
    caller.require_access(body.trajectory_uid)
    opening = Opening(uid=body.trajectory_uid, prompt_uid=body.prompt_uid)
    active = await get_or_open(gateway, opening, caller)
    functions = [tool.function for tool in body.tools or ()]
    tools = offer([("", tool_schema(f.name, f.description, f.parameters)) for f in functions])
    rules = tools.rules(body.tool_choice or "auto", body.response_format, parallel=True)
    constraint = body.constraint
    call = Call(
        prompt_ids=prompt_ids,
        messages=tuple(message.plain() for message in body.messages or ()),
        tools=rules.declared,
        constraint=None if constraint is None else Constraint(kind=constraint.kind, grammar=constraint.grammar),
        sampling=sampling,
        role=body.role,
    )
    request = CallRequest(call=call, key=key, role=body.role, model=params.model or body.model or "")
    await gateway.calls.require_fit(active, request)
    if constraint is None:
        request = await rules.applied_to(request, gateway.tokenizer)
    (answer,) = await gateway.calls.answer(active, request, caller)
    message = {} if body.messages is None else {"message": answer.message()}
    return {**_described(answer.step), **message}


def _described(step: Step) -> dict[str, Any]:
    return {
        "response_text": step.text,
        "token_ids": step.response_ids,
        "response_ids": step.response_ids,
        "prompt_ids": step.prompt_ids,
        "log_probs": step.rollout_log_probs,
        "stop_reason": str(step.finish_reason),
        "policy_version": step.policy_version,
        "adapter": step.adapter,
        "step_index": step.step_index,
        **({"sampling": step.metadata["sampling"]} if "sampling" in step.metadata else {}),
        **({} if step.constraint is None else {"constraint": asdict(step.constraint)}),
    }


async def submit(gateway: Gateway, body: SubmitRequest, channel: str | None, caller: Caller) -> dict[str, Any]:
    """Record steps of the caller's trajectories. A step that was sampled here gets the submitted reward and metadata;
    others are recorded as they are. The last step of a trajectory ends it. A repeated step counts once."""
    for number, payload in enumerate(body.steps):
        await asyncio.sleep(0)  # lets other requests run between many long steps
        caller.require_owner(payload.trajectory_uid, "submit steps of its trajectory")
        gateway.checked_ids(payload.prompt_ids, f"steps.{number}.prompt_ids")
        gateway.checked_ids(payload.response_ids, f"steps.{number}.response_ids")
        _check_step(gateway, payload.step(), f"steps.{number}")
    accepted = 0
    for payload in body.steps:
        opening = Opening(uid=payload.trajectory_uid, prompt_uid=payload.prompt_uid, channel=channel)
        accepted += await _submit(gateway, payload.step(), opening, caller)
    return {"accepted": accepted}


async def _submit(gateway: Gateway, step: Step, opening: Opening, caller: Caller) -> int:
    """Record one step; return 1 if it is new."""
    trajectories = gateway.trajectories
    in_ended = await trajectories.ended_with(step)
    if in_ended is not None:
        if in_ended:
            return 0
        gateway.metrics.late.inc()
        await gateway.require_store().trajectories.append(step, opening.channel or gateway.config.channel)
        return 1
    active = await get_or_open(gateway, opening, caller)
    check_channel(active, opening.channel)
    added = await trajectories.submit(active, step)
    if active.recorder.already_ended:
        gateway.metrics.late.inc()
    if step.is_last and active.ended is None:
        await trajectories.close(active)
    return int(added)


def _check_step(gateway: Gateway, step: Step, param: str) -> None:
    """Raise `ApiError` 400 for a step that no policy of this gateway can have produced."""
    engine, size = gateway.role_engine.engine, len(step.prompt_ids) + len(step.response_ids)
    if size > engine.context_length:
        raise ApiError(400, f"{size} tokens do not fit the context of {engine.context_length}", param=param)
    newest = gateway.served.newest_version
    if step.policy_version > newest:
        problem = f"policy version {step.policy_version} does not exist yet: the newest is {newest}"
        raise ApiError(400, problem, param=f"{param}.policy_version")


async def compute_reward(gateway: Gateway, body: RewardRequest, caller: Caller) -> dict[str, Any]:
    """Return the reward that a trajectory would get if the given text were its answer. Not for its agent, which could
    try answers until it knows the right one."""
    uid = body.trajectory_uid
    if uid is None:
        caller.require_admin()
    else:
        caller.require_owner(uid, "ask what its trajectory would earn")
    if gateway.reward is None:
        raise ApiError(503, "this gateway has no reward function; declare `reward` in its config", code="no_reward")
    answer = await _given_answer(gateway, body)
    task = Task(id="unnamed", prompt="", metadata={"channel": gateway.config.channel})
    trajectory = (
        Trajectory(uid="", prompt_uid="", task=task) if uid is None else await gateway.trajectories.look_up(uid)
    )
    fields = {**body.extra_fields, **body.dataset_fields}
    task = replace(
        trajectory.task,
        answer=fields.pop("answer", trajectory.task.answer),
        metadata={**trajectory.task.metadata, **fields},
    )
    scored = await gateway.reward.score(
        replace(
            trajectory,
            task=task,
            answer=trajectory.answer if answer is None else answer,
            turns=trajectory.turns if body.num_turns is None else body.num_turns,
            status=Status.COMPLETED,
        )
    )
    return {"reward_score": scored.reward, "reward_extra_info": dict(scored.rewards), "error": scored.error}


async def _given_answer(gateway: Gateway, body: RewardRequest) -> str | None:
    """Return the last reply in `messages`, or the text of `response_ids`; None if neither is given."""
    if body.messages:
        messages = [message.plain() for message in body.messages]
        await check_length(gateway.tokenizer, gateway.role_engine.engine.context_length, messages)
        replies: Sequence[Any] = [message["content"] for message in messages if message["role"] == "assistant"]
        return None if not replies or replies[-1] is None else str(replies[-1])
    if body.response_ids is not None:
        return gateway.tokenizer.text_of(gateway.checked_ids(body.response_ids, "response_ids"))
    return None
