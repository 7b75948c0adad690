"""When too many attempts fail, training stops and says why, instead of going on with next to nothing."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.core.errors import AttemptsFailed, TrainingError
from midstream.core.failures import Failure, failure_of, shares
from midstream.core.types import Trajectory
from midstream.learn.rollout_config import MaxFailedConfig
from midstream.rewards.summary import reasons

_REMEDIES = {
    Failure.INFRASTRUCTURE: "start what could not be reached and go on with --resume",
    Failure.REWARD: "mend the component and go on with --resume",
    Failure.AGENT: "see the attempts with midstream show",
}


def check_failures(trajectories: Sequence[Trajectory], limits: MaxFailedConfig, *, first: bool = False) -> None:
    """Raise `AttemptsFailed` when a larger share of `trajectories` failed for one cause than `limits` allow, or when
    all of them failed in the `first` step of a run: there is nothing to go on with. Raises `TrainingError` when none
    has a reward there."""
    found = shares(trajectories)
    for cause, limit in ((cause, getattr(limits, str(cause))) for cause in Failure):
        if found[cause] > limit:
            raise _too_many(trajectories, cause, f"more than rollout.max_failed.{cause} = {limit:g}")
    if not first or not trajectories:
        return
    if all(failure_of(trajectory) is not None for trajectory in trajectories):
        raise _too_many(trajectories, max(found, key=lambda cause: found[cause]), "and no attempt ended well")
    if all(trajectory.reward is None for trajectory in trajectories):
        raise TrainingError(
            f"none of {len(trajectories)} attempts has a reward: no component of the reward applied to any",
            "see reward.components, and whether the tasks have answers",
        )


def _too_many(trajectories: Sequence[Trajectory], cause: Failure, why: str) -> AttemptsFailed:
    failed = [trajectory for trajectory in trajectories if failure_of(trajectory) is cause]
    reason = reasons(failed)[0]
    raised = f"\n{reason['traceback']}" if "traceback" in reason else ""
    return AttemptsFailed(
        f"{len(failed)} of {len(trajectories)} attempts failed ({cause}), {why}; {reason['count']} of them: "
        f"{reason['reason'] or 'no reason given'} (task '{reason['task']}'){raised}",
        _REMEDIES[cause],
    )
