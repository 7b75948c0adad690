"""Steps submitted by agents: matches them with recorded steps, and records the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from midstream.core.types import Status, Step, Trajectory
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions.active import trajectory_ended
from midstream.record.recorder import Recorder
from midstream.record.store import Store


async def submit(recorder: Recorder, store: Store | None, step: Step) -> bool:
    """Add `step` to the trajectory of `recorder`; return False if it was submitted before. A step that was sampled here
    takes its reward and metadata. Raises `ApiError` 409 if another step has its index, 400 if rewards overflow."""
    steps = recorder.finished()
    same = _matching(steps, step)
    if same is not None and same.metadata.get("submitted"):
        return False
    _check_rewards(steps, step)
    if same is not None:
        changed = _with_submission(same, step)
        if store is not None:  # before memory: after a failure the client submits again
            await store.trajectories.update_step(changed)
        recorder.steps[same.step_index] = changed
        return True
    if not recorder.is_free(step.step_index):
        raise ApiError(409, f"trajectory '{step.trajectory_uid}' already has another step {step.step_index}")
    await recorder.submit(replace(step, metadata={**step.metadata, "submitted": True}))
    return True


def contains(ended: Trajectory, step: Step) -> bool:
    """Return whether the ended trajectory contains `step`. Raises `ApiError` 409 if its agent completed it without this
    step, or if another step has its index: agent and gateway disagree."""
    if _matching(ended.steps, step) is not None:
        return True
    if ended.status is Status.COMPLETED or any(own.step_index == step.step_index for own in ended.steps):
        raise trajectory_ended(ended.uid, ended.status, ended.error)
    return False


def _matching(recorded: Sequence[Step], step: Step) -> Step | None:
    """Return the recorded step with the same tokens. Among several: the one with the same index, else the first that
    was not submitted yet."""
    tokens = (step.prompt_ids, step.response_ids)
    same = [known for known in recorded if (known.prompt_ids, known.response_ids) == tokens]
    own = next((known for known in same if known.step_index == step.step_index), None)
    free = next((known for known in same if not known.metadata.get("submitted")), None)
    return own or free or (same[0] if same else None)


def _with_submission(sampled: Step, step: Step) -> Step:
    """Return a step sampled here with the submitted reward and metadata. The record of how it was sampled stays."""
    metadata = {**sampled.metadata, **step.metadata, "submitted": True}
    if "sampling" in sampled.metadata:
        metadata["sampling"] = sampled.metadata["sampling"]
    return replace(sampled, reward=step.reward, metadata=metadata)


def _check_rewards(recorded: Sequence[Step], step: Step) -> None:
    """Raise `ApiError` 400 if the sum of all steps' rewards would overflow."""
    rewards = [known.reward for known in recorded if known.reward is not None]
    if step.reward is not None and not math.isfinite(sum(rewards, step.reward)):
        raise ApiError(400, f"the sum of the rewards of '{step.trajectory_uid}' is no finite number", param="reward")
