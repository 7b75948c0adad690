"""The gateway's own endpoints for trajectories: open, register, complete, describe."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from midstream.core import clock
from midstream.core.types import Status, Trajectory
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.request_bodies import CompleteRequest, Opened, OpenRequest, RegisterRequest
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory, ended_error
from midstream.gateway.sessions.opening import Opening
from midstream.gateway.sessions.trajectories import COMPLETION_KEY


async def open_trajectory(
    gateway: Gateway, body: OpenRequest, caller: Caller, *, base_url: str, key: str | None
) -> Opened:
    """Open a trajectory. The same idempotency key returns the same one."""
    caller.require_admin()
    scoped_key = f"midstream:{caller.key or ''}:{key}"  # two callers may choose the same key
    uid = body.trajectory_uid or (uuid.uuid5(uuid.NAMESPACE_URL, scoped_key).hex if key else None)
    if uid is None or not gateway.trajectories.is_open(uid):
        await gateway.require_capacity(body.channel)
    active = await gateway.trajectories.open(
        Opening(
            uid=uid,
            prompt_uid=body.prompt_uid,
            channel=body.channel,
            group_size=body.group_size,
            task=body.task.model_dump(exclude_none=True),
            metadata=body.metadata,
            key=caller.key,
        ),
        strict=True,
    )
    expires_at = clock.time() + body.token_lifetime_s
    return Opened(
        trajectory_uid=active.uid,
        prompt_uid=active.prompt_uid,
        channel=active.channel,
        base_url=f"{gateway.config.url or base_url}/{active.uid}/{active.prompt_uid}/v1",
        token=gateway.signer.issue(active.uid, expires_at),
        owner_token=gateway.signer.issue(active.uid, expires_at, "owner"),
        expires_at=expires_at,
    )


async def register(gateway: Gateway, uid: str, prompt_uid: str, body: RegisterRequest, caller: Caller) -> None:
    """Add to a trajectory's task and metadata; an admin's call opens it if needed. An agent may not: it would choose
    its own reference answer."""
    caller.require_owner(uid, "register its trajectory")
    opening = Opening(
        uid=uid,
        prompt_uid=prompt_uid,
        channel=body.channel,
        group_size=body.group_size,
        task=body.task.model_dump(exclude_none=True),
        metadata=body.metadata,
    )
    await gateway.trajectories.register(await get_or_open(gateway, opening, caller), opening)


async def complete(
    gateway: Gateway, uid: str, prompt_uid: str | None, body: CompleteRequest, caller: Caller, key: str | None
) -> dict[str, Any]:
    """End a trajectory. The same idempotency key returns the same description. An agent may set answer, status and
    error, never a reward."""
    caller.require_access(uid)
    for name in ("reward", "rewards"):
        if getattr(body, name) is not None:
            caller.require_owner(uid, f"set the '{name}' of its trajectory")
    try:
        completed = await _complete(gateway, uid, prompt_uid, body, key)
    except ApiError as error:
        if key is None or error.code != "trajectory_ended":
            raise
        completed = await gateway.trajectories.look_up(uid)
        if completed.metadata.get(COMPLETION_KEY) != key:
            raise
    return {"status": "ok", **_description(completed, caller)}


async def _complete(
    gateway: Gateway, uid: str, prompt_uid: str | None, body: CompleteRequest, key: str | None
) -> Trajectory:
    active = await gateway.trajectories.get(uid, prompt_uid)
    check_channel(active, body.channel)
    return await gateway.trajectories.close(
        active,
        Status(body.status),
        reward=body.reward,
        rewards=body.rewards,
        answer=body.answer,
        error=body.error,
        key=key,
    )


async def describe(gateway: Gateway, uid: str, caller: Caller) -> dict[str, Any]:
    """Return the state and answer of a trajectory, and its reward if `caller` may grade it."""
    caller.require_access(uid)
    return _description(await gateway.trajectories.look_up(uid), caller)


async def get_or_open(gateway: Gateway, opening: Opening, caller: Caller) -> ActiveTrajectory:
    """Return the open trajectory; an admin's call opens it if it never existed."""
    assert opening.uid is not None
    trajectories = gateway.trajectories
    try:
        active = await trajectories.get(opening.uid, opening.prompt_uid)
    except ApiError as error:
        if error.status != 404 or not caller.admin or await trajectories.exists(opening.uid):
            raise
        await gateway.require_capacity(opening.channel)
        active = await trajectories.open(replace(opening, key=caller.key))
    if active.ended is not None:
        raise ended_error(active)
    return active


def check_channel(active: ActiveTrajectory, channel: str | None) -> None:
    """Raise `ApiError` 409 if the trajectory is in another channel."""
    if channel not in (None, active.channel):
        raise ApiError(409, f"trajectory '{active.uid}' is in the channel '{active.channel}'", param="channel")


def _description(trajectory: Trajectory, caller: Caller) -> dict[str, Any]:
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
