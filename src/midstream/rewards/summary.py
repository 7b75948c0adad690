"""Summarizes trajectories: success with its confidence interval, reward by component, turns, tool errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from midstream.core.classification import classification_report
from midstream.core.failures import first_traceback
from midstream.core.statistics import bootstrap_mean, wilson
from midstream.core.types import FinishReason, Status, Trajectory
from midstream.rewards.graders import exact_match

Succeeded = Callable[[Trajectory], bool]


def summarise(trajectories: Sequence[Trajectory], succeeded: Succeeded, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return success (Wilson 95 %), also by kind, and reward (bootstrap 95 %). Failed attempts count as unsuccessful.
    `errors` lists the reasons of failures. With `classes`, `classification` is the report by class over the tasks whose
    answer is one of them."""
    successes = [succeeded(t) for t in trajectories]
    kinds = sorted({t.task.kind for t in trajectories})
    return {
        **_success(successes),
        "by_kind": {
            kind: _success([s for t, s in zip(trajectories, successes, strict=True) if t.task.kind == kind])
            for kind in kinds
        },
        **describe(trajectories),
        **_reward_interval([t.reward for t in trajectories if t.reward is not None]),
        "errors": failure_reasons(trajectories),
        **_by_class(trajectories, classes),
    }


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Return means over trajectories: `reward`, `rewards/<component>`, `turns`, `steps`, and shares of failures."""
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
    """Return reasons of failures, most frequent first: `reason`, `count`, and `task`, the id of the first such task.
    The first reason has a `traceback` when user code raised."""
    found: dict[str, dict[str, Any]] = {}
    for trajectory in trajectories:
        if trajectory.status is Status.COMPLETED:
            continue
        # Reasons that differ only in numbers, such as a prompt's length, are merged.
        key = re.sub(r"\d+", "#", trajectory.error)
        entry = found.setdefault(key, {"reason": trajectory.error, "count": 0, "task": trajectory.task.id})
        entry["count"] += 1
    ordered = sorted(found.items(), key=lambda item: -item[1]["count"])
    for key, entry in ordered[:1]:
        alike = [one for one in trajectories if re.sub(r"\d+", "#", one.error) == key]
        if raised := first_traceback(alike):
            entry["traceback"] = raised
    return [entry for _, entry in ordered]


def _by_class(trajectories: Sequence[Trajectory], classes: Sequence[str]) -> dict[str, Any]:
    labelled = [(label, one.answer) for one in trajectories if (label := _class_of(one.task.answer, classes))]
    if not labelled:
        return {}
    predicted = [_class_of(answer, classes) for _, answer in labelled]
    return {"classification": asdict(classification_report([label for label, _ in labelled], predicted, classes))}


def _class_of(answer: Any, classes: Sequence[str]) -> str | None:
    if not isinstance(answer, str):
        return None
    return next((name for name in classes if exact_match(answer, name)), None)


def _reward_interval(rewards: Sequence[float]) -> dict[str, float]:
    if len(rewards) < 2:
        return {}
    low, high = bootstrap_mean(rewards)
    return {"reward_low": low, "reward_high": high}


def _success(successes: Sequence[bool]) -> dict[str, Any]:
    if not successes:
        return {"n": 0, "success": None, "low": None, "high": None}
    interval = wilson(sum(successes), len(successes))
    mean = sum(successes) / len(successes)
    return {"n": len(successes), "success": mean, "low": interval.low, "high": interval.high}


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
