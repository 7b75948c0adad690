"""Why an attempt failed, by who is to blame: that decides whether it may count as an outcome of the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from midstream.core.types import Status, Trajectory

KEY = "failure"
"""The metadata of a trajectory that names its failure."""


class Failure(StrEnum):
    """Who is to blame that an attempt did not end well."""

    INFRASTRUCTURE = "infrastructure"
    """An engine, a judge or another service could not be reached: nothing is known of the attempt."""
    REWARD = "reward"
    """A reward component raised or took too long."""
    AGENT = "agent"
    """The agent itself: its flow raised, its prompt outgrew the context, or it took too long."""


def because(trajectory: Trajectory, failure: Failure) -> Trajectory:
    """`trajectory` with the cause of its failure kept in its metadata."""
    return replace(trajectory, metadata={**trajectory.metadata, KEY: str(failure)})


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
