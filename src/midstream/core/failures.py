"""Why an attempt failed, by who is to blame: that decides whether it may count as an outcome of the policy."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from midstream.core.secrets import text_without_secrets
from midstream.core.types import Status, Trajectory

KEY = "failure"
"""The metadata of a trajectory that names its failure."""
TRACEBACK = "traceback"
"""The metadata of a trajectory that holds the traceback of what its flow or a reward component raised."""
LONGEST_TRACEBACK = 8000
"""Characters that are kept of one, from its end."""


_OURS = ("midstream.", "asyncio.", "contextvars")


class Failure(StrEnum):
    """Who is to blame that an attempt did not end well."""

    INFRASTRUCTURE = "infrastructure"
    """An engine, a judge or another service could not be reached: nothing is known of the attempt."""
    REWARD = "reward"
    """A reward component raised or took too long."""
    AGENT = "agent"
    """The agent itself: its flow raised, its prompt outgrew the context, or it took too long."""


def because(trajectory: Trajectory, failure: Failure, error: BaseException | None = None) -> Trajectory:
    """`trajectory` with the cause of its failure, and the traceback of `error`, kept in its metadata."""
    kept = {KEY: str(failure)}
    if error is not None:
        kept[TRACEBACK] = traceback_of(error)
    return replace(trajectory, metadata={**trajectory.metadata, **kept})


def traceback_of(error: BaseException) -> str:
    """The traceback of what the user's code raised, without our frames around it and without secrets."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.tb_next
    text = "".join(traceback.format_exception(type(error), error, frame or error.__traceback__))
    return text_without_secrets(text.rstrip())[-LONGEST_TRACEBACK:]


def first_traceback(trajectories: Sequence[Trajectory]) -> str:
    """The traceback of the first of `trajectories` that has one; empty when none has."""
    kept = (trajectory.metadata.get(TRACEBACK) for trajectory in trajectories)
    return next((str(text) for text in kept if text), "")


def failure_of(trajectory: Trajectory) -> Failure | None:
    """Why `trajectory` failed; None when it did not. One that does not say is the agent's."""
    if trajectory.status not in (Status.FAILED, Status.TIMED_OUT):
        return None
    named = trajectory.metadata.get(KEY)
    return Failure(named) if named in set(Failure) else Failure.AGENT


def shares(trajectories: Sequence[Trajectory]) -> dict[Failure, float]:
    """The share of `trajectories` that failed, by cause."""
    counts = Counter(failure_of(trajectory) for trajectory in trajectories)
    return {cause: counts[cause] / max(len(trajectories), 1) for cause in Failure}
