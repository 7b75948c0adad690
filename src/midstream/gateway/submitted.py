"""Steps that an agent hands in: which recorded ones they are, and what they may change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from midstream.core.types import Step
from midstream.gateway.errors import ApiError


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
