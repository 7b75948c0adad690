"""What a set of trajectories says in numbers: success with its interval, reward by component, turns, tool errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from midstream.core.statistics import bootstrap_mean, wilson
from midstream.core.types import FinishReason, Status, Trajectory

Succeeded = Callable[[Trajectory], bool]


def summarise(trajectories: Sequence[Trajectory], succeeded: Succeeded) -> dict[str, Any]:
    """Success (Wilson 95 %), by kind too, and reward (bootstrap 95 %); failed attempts count as tried and not
    succeeded. `errors` says why attempts failed."""
    won = [succeeded(t) for t in trajectories]
    kinds = sorted({t.task.kind for t in trajectories})
    return {
        **_success(won),
        "by_kind": {
            kind: _success([w for t, w in zip(trajectories, won, strict=True) if t.task.kind == kind]) for kind in kinds
        },
        **describe(trajectories),
        **_reward_interval([t.reward for t in trajectories if t.reward is not None]),
        "errors": failure_reasons(trajectories),
    }


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Means over trajectories: `reward`, `rewards/<component>`, `turns`, `steps`, and shares of what went wrong."""
    steps = [step for t in trajectories for step in t.steps]
    calls = [call for t in trajectories for call in t.tool_calls]
    components = list(dict.fromkeys(name for t in trajectories for name in t.rewards))
    return {
        "reward": _mean([t.reward for t in trajectories]),
        **{f"rewards/{name}": _mean([t.rewards.get(name) for t in trajectories]) for name in components},
        "turns": _mean([float(t.turns) for t in trajectories]),
        "tool_error_rate": _mean([float(not call.ok) for call in calls]),
        "truncated": _mean([float(step.finish_reason == FinishReason.LENGTH) for step in steps]),
        "branches": float(sum(bool(step.branch_reason) for step in steps)),
        "failed": _mean([float(t.status is not Status.COMPLETED) for t in trajectories]),
    }


def failure_reasons(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Why attempts failed: `reason`, `count`, and the id of the first such `task`; the most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for trajectory in trajectories:
        if trajectory.status is Status.COMPLETED:
            continue
        # The same reason with another number in it, a prompt's length say, is the same reason.
        key = re.sub(r"\d+", "#", trajectory.error)
        entry = found.setdefault(key, {"reason": trajectory.error, "count": 0, "task": trajectory.task.id})
        entry["count"] += 1
    return sorted(found.values(), key=lambda entry: -entry["count"])


def _reward_interval(rewards: Sequence[float]) -> dict[str, float]:
    if len(rewards) < 2:
        return {}
    low, high = bootstrap_mean(rewards)
    return {"reward_low": low, "reward_high": high}


def _success(won: Sequence[bool]) -> dict[str, Any]:
    if not won:
        return {"n": 0, "success": None, "low": None, "high": None}
    interval = wilson(sum(won), len(won))
    return {"n": len(won), "success": sum(won) / len(won), "low": interval.low, "high": interval.high}


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
