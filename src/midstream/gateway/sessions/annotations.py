"""The gateway's own endpoints for people: feedback and curation of recorded trajectories."""

from __future__ import annotations

import asyncio
from typing import Any

from midstream.core.errors import UserError
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.request_bodies import CurationRequest, FeedbackRequest
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway
from midstream.record.feedback import Feedback


async def add_feedback(
    gateway: Gateway, uid: str, body: FeedbackRequest, caller: Caller, key: str | None
) -> dict[str, Any]:
    """Record a person's feedback. An agent's opinion of itself is not feedback."""
    caller.require_owner(uid, "give feedback on itself")
    await _require_step(gateway, uid, body.step_index)
    try:
        Feedback(trajectory_uid=uid, kind=body.kind, value=body.value, text=body.text)
    except UserError as error:
        raise ApiError(400, f"{error.message}: {error.hint}", param="value") from None
    await asyncio.to_thread(
        gateway.require_store().annotations.add_feedback,
        uid,
        body.kind,
        body.value,
        text=body.text,
        step_index=body.step_index,
        key=key,
    )
    return {"status": "ok"}


async def curate(gateway: Gateway, uid: str, body: CurationRequest, caller: Caller) -> dict[str, Any]:
    """Set what training does with a trajectory or a step."""
    caller.require_admin()
    await _require_step(gateway, uid, body.step_index)
    await asyncio.to_thread(
        gateway.require_store().annotations.curate,
        uid,
        body.step_index,
        trainable=body.trainable,
        quality=body.quality,
        tags=body.tags,
        note=body.note,
    )
    return {"status": "ok"}


async def _require_step(gateway: Gateway, uid: str, step_index: int | None) -> None:
    """Raise `ApiError` 404 if there is no such trajectory, or it has no such step."""
    trajectory = await gateway.trajectories.look_up(uid)
    if step_index is not None and all(step.step_index != step_index for step in trajectory.steps):
        raise ApiError(404, f"trajectory '{uid}' has no step {step_index}", param="step_index")
