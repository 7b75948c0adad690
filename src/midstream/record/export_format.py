"""Converts a trajectory, with its annotations and group, to a self-contained record and back to rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from midstream.core.errors import UserError
from midstream.core.types import Constraint, Status, Step, Task, ToolCall, Trajectory
from midstream.record.curation import Curation, check_quality
from midstream.record.feedback import Feedback
from midstream.record.group_states import GroupState
from midstream.record.import_check import check_record
from midstream.record.loading import Recorded
from midstream.record.rows import Row, step_row, trajectory_row

LISTS = ("prompt_ids", "response_ids", "rollout_log_probs", "messages", "tools")
"""Step fields that hold tuples, exported as lists."""


@dataclass(frozen=True, slots=True)
class RecordRows:
    """Store rows of one record."""

    trajectory: Row
    steps: list[Row]
    curation: list[Curation]
    feedback: list[Feedback]
    group: Row | None

    @property
    def uid(self) -> str:
        return self.trajectory["uid"]


def record_of(
    recorded: Recorded, curation: Sequence[Curation], feedback: Sequence[Feedback], group: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return a trajectory and its annotations as one mapping for `exact_json`. Sessions and leases are not exported."""
    trajectory = recorded.trajectory
    task = _fields(trajectory.task)
    if not isinstance(task["prompt"], str):
        task["prompt"] = list(task["prompt"])
    if group is not None and group["state"] == GroupState.LEASED:
        group = {**group, "state": GroupState.READY.value, "owner": None}
    return {
        "uid": trajectory.uid,
        "prompt_uid": trajectory.prompt_uid,
        "channel": recorded.channel,
        "train_step": recorded.train_step,
        "status": str(trajectory.status),
        "created_at": recorded.created_at,
        "ended_at": recorded.ended_at,
        "task": task,
        "tool_calls": [_fields(call) for call in trajectory.tool_calls],
        "answer": trajectory.answer,
        "turns": trajectory.turns,
        "error": trajectory.error,
        "rewards": trajectory.rewards,
        "reward": trajectory.reward,
        "metadata": trajectory.metadata,
        "steps": [_step_record(step) for step in trajectory.steps],
        "curation": [{**_fields(one), "tags": list(one.tags)} for one in curation],
        "feedback": [_fields(one) for one in feedback],
        "group": None if group is None else {name: group[name] for name in GROUP},
    }


GROUP = ("size", "deadline", "state", "ended", "ready_at", "owner", "train_step")
"""Exported columns of `groups`; the others belong to the trajectory or to a lease."""


def rows_of(record: Mapping[str, Any]) -> RecordRows:
    """Return the rows of `record`. Raises `ValueError` with a one-line description of the problem."""
    check_record(record)
    try:
        task = dict(record["task"])
        if not isinstance(task["prompt"], str):
            task["prompt"] = tuple(task["prompt"])
        steps = [Step(**{**step, **_tuples(step), "constraint": _constraint(step)}) for step in record["steps"]]
        own = {field.name: record[field.name] for field in fields(Trajectory) if field.name not in ("task", "steps")}
        calls = tuple(ToolCall(**call) for call in record["tool_calls"])
        trajectory = Trajectory(
            **{**own, "task": Task(**task), "tool_calls": calls, "status": Status(record["status"])}
        )
        beside = {name: record[name] for name in ("channel", "train_step", "created_at", "ended_at")}
        return RecordRows(
            {**trajectory_row(trajectory), **beside, "session": None, "server": None},
            [step_row(step) for step in steps],
            [
                Curation(
                    **{**one, "quality": check_quality(one.get("quality", "")), "tags": tuple(one.get("tags", ()))}
                )
                for one in record["curation"]
            ],
            [Feedback(**one) for one in record["feedback"]],
            _group_row(record),
        )
    except UserError as error:
        raise ValueError(error.message) from None


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _step_record(step: Step) -> dict[str, Any]:
    record = {**_fields(step), "finish_reason": str(step.finish_reason)}
    if step.constraint is not None:
        record["constraint"] = _fields(step.constraint)
    return {**record, **{name: list(record[name]) for name in LISTS if record[name] is not None}}


def _tuples(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(step[name]) for name in LISTS if step[name] is not None}


def _constraint(step: Mapping[str, Any]) -> Constraint | None:
    fields = step.get("constraint")
    return None if fields is None else Constraint(**fields)


def _group_row(record: Mapping[str, Any]) -> Row | None:
    group = record["group"]
    if group is None:
        return None
    row = {"prompt_uid": record["prompt_uid"], "channel": record["channel"], "lease_until": None}
    return {**row, **{name: group[name] for name in GROUP}, "state": GroupState(group["state"]).value}
