"""Causes of failed trajectories. The cause decides whether a failure counts as an outcome of the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from midstream.core.types import Status, Trajectory

KEY = "failure"
"""Metadata key of a trajectory that names its failure cause."""


class Failure(StrEnum):
    """Cause of a failed trajectory."""

    INFRASTRUCTURE = "infrastructure"
    """An engine, a judge or another service was unreachable: the attempt has no known outcome."""
    REWARD = "reward"
    """A reward component raised or timed out."""
    AGENT = "agent"
    """The agent: its flow raised, its prompt exceeded the context, or it timed out."""


def with_failure(trajectory: Trajectory, failure: Failure) -> Trajectory:
    """Return `trajectory` with the cause of its failure in its metadata."""
    return replace(trajectory, metadata={**trajectory.metadata, KEY: str(failure)})


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
