"""A trajectory with all that is kept of it, as one record that can travel; and the rows it becomes again."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Table

from midstream.core.errors import UserError
from midstream.core.types import Status, Step, Task, ToolCall, Trajectory
from midstream.record import schema
from midstream.record.curation import Curation, checked
from midstream.record.feedback import Feedback
from midstream.record.group_states import GroupState
from midstream.record.loading import Recorded
from midstream.record.rows import Row, step_row, trajectory_row

LISTS = ("prompt_ids", "response_ids", "rollout_log_probs", "messages", "tools")
"""Fields of a step that hold tuples, which travel as lists."""


@dataclass(frozen=True, slots=True)
class Portable:
    """What one record becomes in a store."""

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
    """What is known of a trajectory as one mapping, for `exact_json`. Sessions and leases stay behind."""
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
"""Columns of `groups` that travel; the others are the trajectory's own, or are about a lease."""


def portable(record: Mapping[str, Any]) -> Portable:
    """The rows of `record`. Raises `ValueError` saying what is wrong with it."""
    try:
        task = dict(record["task"])
        if not isinstance(task["prompt"], str):
            task["prompt"] = tuple(task["prompt"])
        steps = [Step(**{**step, **_tuples(step)}) for step in record["steps"]]
        own = {field.name: record[field.name] for field in fields(Trajectory) if field.name not in ("task", "steps")}
        calls = tuple(ToolCall(**call) for call in record["tool_calls"])
        trajectory = Trajectory(
            **{**own, "task": Task(**task), "tool_calls": calls, "status": Status(record["status"])}
        )
        beside = {name: record[name] for name in ("channel", "train_step", "created_at", "ended_at")}
        made = Portable(
            {**trajectory_row(trajectory), **beside, "session": None, "server": None},
            [step_row(step) for step in steps],
            [Curation(**{**one, "tags": tuple(one["tags"])}) for one in record["curation"]],
            [Feedback(**one) for one in record["feedback"]],
            _group_row(record),
        )
        _check(schema.trajectories, made.trajectory, "id")
        for step in made.steps:
            _check(schema.steps, step)
        if made.group is not None:
            _check(schema.groups, made.group)
        for one in made.curation:
            checked(one.quality)
        for one in (*made.steps, *map(_fields, made.curation), *map(_fields, made.feedback)):
            if one["trajectory_uid"] != made.uid:
                raise ValueError(f"it holds something of the trajectory {one['trajectory_uid']!r}")
    except KeyError as error:
        raise ValueError(f"it has no {error}") from None
    except UserError as error:
        raise ValueError(error.message) from None
    except (TypeError, AttributeError, struct.error) as error:
        raise ValueError(str(error)) from None
    return made


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _step_record(step: Step) -> dict[str, Any]:
    record = {**_fields(step), "finish_reason": str(step.finish_reason)}
    return {**record, **{name: list(record[name]) for name in LISTS if record[name] is not None}}


def _tuples(step: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: step[name] for name in LISTS if step[name] is not None}
    for name, value in found.items():
        if not isinstance(value, list):
            raise ValueError(f"{name} of a step is a {type(value).__name__}, not a list")
    return {name: tuple(value) for name, value in found.items()}


def _group_row(record: Mapping[str, Any]) -> Row | None:
    group = record["group"]
    if group is None:
        return None
    if group["state"] == GroupState.LEASED:
        raise ValueError("its group is leased, and a lease does not travel")
    row = {"prompt_uid": record["prompt_uid"], "channel": record["channel"], "lease_until": None}
    return {**row, **{name: group[name] for name in GROUP}, "state": GroupState(group["state"]).value}


def _check(table: Table, row: Row, *without: str) -> None:
    """That each value is of its column's type: SQLite would take any."""
    for column in table.columns:
        if column.name in without:
            continue
        value, wanted = row[column.name], column.type.python_type
        ok = column.nullable if value is None else isinstance(value, (wanted, int) if wanted is float else wanted)
        if not ok or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"its {column.name} is {value!r:.40}, not a {wanted.__name__}")
