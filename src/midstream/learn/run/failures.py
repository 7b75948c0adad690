"""Stops training when too many attempts fail, and reports why."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from midstream.agents.resume import IN_DOUBT
from midstream.core.errors import AttemptsFailed, TrainingError
from midstream.core.failures import Failure, failure_of, shares
from midstream.core.types import Trajectory
from midstream.learn.rollout_config import MaxFailedConfig
from midstream.rewards.summary import failure_reasons

_log = logging.getLogger(__name__)
_REMEDIES = {
    Failure.INFRASTRUCTURE: "start the service that could not be reached and continue with --resume",
    Failure.REWARD: "fix the component and continue with --resume",
    Failure.AGENT: "inspect the attempts with midstream show",
}


def check_failures(trajectories: Sequence[Trajectory], limits: MaxFailedConfig, *, first: bool = False) -> None:
    """Raise `AttemptsFailed` when the share of failures of one cause exceeds its limit, or when all attempts of the
    `first` training step failed. Raise `TrainingError` when none of that step has a reward.

    Attempts with a call in doubt (`flow.tool_use.in_doubt: fail`) do not count. No service was unreachable, and their
    outcome stays unknown however often the run is resumed: it would stop at the same step each time."""
    counted = [trajectory for trajectory in trajectories if not _in_doubt(trajectory)]
    if len(counted) < len(trajectories):
        _log.warning(
            "%d of %d attempts failed because the process died during a call of a tool that is not idempotent; see "
            "flow.tool_use.in_doubt",
            len(trajectories) - len(counted),
            len(trajectories),
        )
    trajectories = counted
    found = shares(trajectories)
    for cause, limit in ((cause, getattr(limits, str(cause))) for cause in Failure):
        if found[cause] > limit:
            raise _too_many(trajectories, cause, f"more than rollout.max_failed.{cause} = {limit:g}")
    if not first or not trajectories:
        return
    if all(failure_of(trajectory) is not None for trajectory in trajectories):
        raise _too_many(trajectories, max(found, key=lambda cause: found[cause]), "and no attempt completed")
    if all(trajectory.reward is None for trajectory in trajectories):
        raise TrainingError(
            f"none of {len(trajectories)} attempts has a reward: no component of the reward applied to any",
            "check reward.components, and that the tasks have answers",
        )


def _in_doubt(trajectory: Trajectory) -> bool:
    return IN_DOUBT in trajectory.metadata and failure_of(trajectory) is Failure.INFRASTRUCTURE


def _too_many(trajectories: Sequence[Trajectory], cause: Failure, why: str) -> AttemptsFailed:
    failed = [trajectory for trajectory in trajectories if failure_of(trajectory) is cause]
    reason = failure_reasons(failed)[0]
    raised = f"\n{reason['traceback']}" if "traceback" in reason else ""
    return AttemptsFailed(
        f"{len(failed)} of {len(trajectories)} attempts failed ({cause}), {why}; {reason['count']} of them: "
        f"{reason['reason'] or 'no reason given'} (task '{reason['task']}'){raised}",
        _REMEDIES[cause],
    )
