"""Causes of failed trajectories. The cause decides whether a failure counts as an outcome of the policy."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from midstream.core.secrets import text_without_secrets
from midstream.core.types import Status, Trajectory

KEY = "failure"
"""Metadata key of a trajectory that names its failure cause."""
TRACEBACK = "traceback"
"""Metadata key of a trajectory: the traceback of an error in its flow or a reward component."""
LONGEST_TRACEBACK = 8000
"""Characters kept of a traceback, from its end."""


_OURS = ("midstream.", "asyncio.", "contextvars")


class Failure(StrEnum):
    """Cause of a failed trajectory."""

    INFRASTRUCTURE = "infrastructure"
    """An engine, a judge or another service was unreachable: the attempt has no known outcome."""
    REWARD = "reward"
    """A reward component raised or timed out."""
    AGENT = "agent"
    """The agent: its flow raised, its prompt exceeded the context, or it timed out."""


def with_failure(trajectory: Trajectory, failure: Failure, error: BaseException | None = None) -> Trajectory:
    """Return `trajectory` with the cause of its failure, and the traceback of `error`, in its metadata."""
    kept = {KEY: str(failure)}
    if error is not None:
        kept[TRACEBACK] = traceback_of(error)
    return replace(trajectory, metadata={**trajectory.metadata, **kept})


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error in the user's code, without Midstream's frames and without secrets."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.tb_next
    text = "".join(traceback.format_exception(type(error), error, frame or error.__traceback__))
    return text_without_secrets(text.rstrip())[-LONGEST_TRACEBACK:]


def first_traceback(trajectories: Sequence[Trajectory]) -> str:
    """Return the first traceback among `trajectories`; empty if none has one."""
    kept = (trajectory.metadata.get(TRACEBACK) for trajectory in trajectories)
    return next((str(text) for text in kept if text), "")


def failure_of(trajectory: Trajectory) -> Failure | None:
    """Return the failure cause of `trajectory`; None if it did not fail. Defaults to `AGENT` when no cause is
    recorded."""
    if trajectory.status not in (Status.FAILED, Status.TIMED_OUT):
        return None
    named = trajectory.metadata.get(KEY)
    return Failure(named) if named in set(Failure) else Failure.AGENT


def shares(trajectories: Sequence[Trajectory]) -> dict[Failure, float]:
    """Return the fraction of `trajectories` that failed, by cause."""
    counts = Counter(failure_of(trajectory) for trajectory in trajectories)
    return {cause: counts[cause] / max(len(trajectories), 1) for cause in Failure}
