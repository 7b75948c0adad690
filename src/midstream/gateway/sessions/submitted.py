"""Steps that are handed in: which recorded ones they are, and what they may change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from midstream.core.types import Status, Step, Trajectory
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions.active import over
from midstream.record.recorder import Recorder
from midstream.record.store import Store


def meant(recorded: Sequence[Step], step: Step) -> Step | None:
    """The recorded step that a submitted one is: the same tokens. Of several calls that came to them, its own by its
    place; else the first that nobody has spoken for."""
    tokens = (step.prompt_ids, step.response_ids)
    alike = [known for known in recorded if (known.prompt_ids, known.response_ids) == tokens]
    own = next((known for known in alike if known.step_index == step.step_index), None)
    free = next((known for known in alike if not known.metadata.get("submitted")), None)
    return own or free or (alike[0] if alike else None)


def spoken_for(sampled: Step, step: Step) -> Step:
    """A step that was sampled here, with reward and metadata of the submitted one. How it was sampled stays."""
    metadata = {**sampled.metadata, **step.metadata, "submitted": True}
    if "sampling" in sampled.metadata:
        metadata["sampling"] = sampled.metadata["sampling"]
    return replace(sampled, reward=step.reward, metadata=metadata)


def check_rewards(uid: str, recorded: Sequence[Step], step: Step) -> None:
    """`ApiError` 400 when the rewards of trajectory `uid` would add up to no number with that of `step`."""
    rewards = [known.reward for known in recorded if known.reward is not None]
    if step.reward is not None and not math.isfinite(sum(rewards, step.reward)):
        raise ApiError(400, f"with this the rewards of '{uid}' add up to no number", param="reward")


async def submit(recorder: Recorder, store: Store | None, step: Step) -> bool:
    """Take `step` into the trajectory of `recorder`; False when it was there already. One that was sampled here takes
    over reward and metadata. Raises `ApiError` 409 when another step has its place."""
    steps = recorder.finished()
    same = meant(steps, step)
    if same is not None and same.metadata.get("submitted"):
        return False
    check_rewards(step.trajectory_uid, steps, step)
    if same is not None:
        changed = spoken_for(same, step)
        if store is not None:  # first: who is told that it failed tries again
            await store.trajectories.update_step(changed)
        recorder.steps[same.step_index] = changed
        return True
    if not recorder.is_free(step.step_index):
        taken = f"trajectory '{step.trajectory_uid}' has another step {step.step_index} already"
        raise ApiError(409, taken)
    await recorder.submit(replace(step, metadata={**step.metadata, "submitted": True}))
    return True


def holds(known: Trajectory, step: Step) -> bool:
    """Whether a trajectory that ended holds `step`. Raises `ApiError` 409 when its agent completed it without this
    step: then somebody is wrong."""
    if meant(known.steps, step) is not None:
        return True
    if known.status is Status.COMPLETED or any(own.step_index == step.step_index for own in known.steps):
        raise over(known.uid, known.status, known.error)
    return False
