"""Converts the types of `core` to rows of the store and back, exactly."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from sqlalchemy import RowMapping

from midstream.core.types import Constraint, FinishReason, Status, Step, Task, ToolCall, Trajectory
from midstream.store.exact_json import from_json, to_json

Row = dict[str, Any]


def step_row(step: Step) -> Row:
    """Return `step` as a row of `steps`."""
    where = f"step {step.step_index} of trajectory {step.trajectory_uid!r}"
    log_probs = step.rollout_log_probs
    return {
        "trajectory_uid": step.trajectory_uid,
        "step_index": step.step_index,
        "prompt_uid": step.prompt_uid,
        "prompt_ids": _pack_ids(step.prompt_ids),
        "response_ids": _pack_ids(step.response_ids),
        "rollout_log_probs": None if log_probs is None else struct.pack(f"<{len(log_probs)}d", *log_probs),
        "reward": step.reward,
        "policy_version": step.policy_version,
        "is_last": step.is_last,
        "metadata": to_json(step.metadata, f"metadata of {where}"),
        "role": step.role,
        "trainable": step.trainable,
        "parent": step.parent,
        "branch_reason": step.branch_reason,
        "temperature": step.temperature,
        "messages": to_json(step.messages, f"messages of {where}"),
        "text": to_json(step.text, f"text of {where}"),
        "finish_reason": str(step.finish_reason),
        "latency_s": step.latency_s,
        "tools": to_json(step.tools, f"tools of {where}"),
        "adapter": step.adapter,
        "constraint": None if step.constraint is None else _constraint_json(step.constraint),
    }


def step_from_row(row: RowMapping | Row) -> Step:
    log_probs: bytes | None = row["rollout_log_probs"]
    return Step(
        prompt_ids=_unpack_ids(row["prompt_ids"]),
        response_ids=_unpack_ids(row["response_ids"]),
        rollout_log_probs=None if log_probs is None else struct.unpack(f"<{len(log_probs) // 8}d", log_probs),
        reward=row["reward"],
        trajectory_uid=row["trajectory_uid"],
        prompt_uid=row["prompt_uid"],
        step_index=row["step_index"],
        policy_version=row["policy_version"],
        is_last=row["is_last"],
        metadata=from_json(row["metadata"]),
        role=row["role"],
        trainable=row["trainable"],
        parent=row["parent"],
        branch_reason=row["branch_reason"],
        temperature=row["temperature"],
        messages=from_json(row["messages"]),
        text=from_json(row["text"]),
        finish_reason=_finish_reason(row["finish_reason"]),
        latency_s=row["latency_s"],
        tools=from_json(row["tools"]),
        adapter=row["adapter"],
        constraint=None if row["constraint"] is None else _constraint(row["constraint"]),
    )


def late(row: Row) -> Row:
    """Return the row of a step that arrived after its trajectory ended: marked late, and not trainable."""
    metadata = {**from_json(row["metadata"]), "late": True}
    return {**row, "metadata": to_json(metadata, "metadata"), "trainable": False}


@lru_cache(256)
def _constraint_json(constraint: Constraint) -> str:
    return to_json(asdict(constraint), "a constraint")


@lru_cache(256)
def _constraint(text: str) -> Constraint:
    return Constraint(**from_json(text))


def _finish_reason(text: str) -> str:
    return FinishReason(text) if text in FinishReason.__members__.values() else text


def trajectory_row(trajectory: Trajectory) -> Row:
    """Return `trajectory` without its steps, channel, training step, session and times as a row of `trajectories`."""
    where = f"trajectory {trajectory.uid!r}"
    task = trajectory.task
    calls = [
        {
            "tool": call.tool,
            "arguments": call.arguments,
            "ok": call.ok,
            "result": call.result,
            "error_kind": call.error_kind,
            "latency_s": call.latency_s,
            "step_index": call.step_index,
            "unmasked": call.unmasked,
            "answered_by": call.answered_by,
            "attempts": call.attempts,
        }
        for call in trajectory.tool_calls
    ]
    task_fields = {
        "id": task.id,
        "prompt": task.prompt,
        "answer": task.answer,
        "kind": task.kind,
        "split": task.split,
        "metadata": task.metadata,
    }
    return {
        "uid": trajectory.uid,
        "prompt_uid": trajectory.prompt_uid,
        "status": str(trajectory.status),
        "task": to_json(task_fields, f"task of {where}"),
        "tool_calls": to_json(calls, f"tool calls of {where}"),
        "answer": to_json(trajectory.answer, f"answer of {where}"),
        "turns": trajectory.turns,
        "error": to_json(trajectory.error, f"error of {where}"),
        "rewards": to_json(trajectory.rewards, f"rewards of {where}"),
        "reward": trajectory.reward,
        "metadata": to_json(trajectory.metadata, f"metadata of {where}"),
    }


def trajectory_from_row(row: RowMapping | Row, steps_of_it: Sequence[Step]) -> Trajectory:
    return Trajectory(
        uid=row["uid"],
        prompt_uid=row["prompt_uid"],
        task=Task(**from_json(row["task"])),
        steps=tuple(steps_of_it),
        tool_calls=tuple(ToolCall(**call) for call in from_json(row["tool_calls"])),
        answer=from_json(row["answer"]),
        turns=row["turns"],
        status=Status(row["status"]),
        error=from_json(row["error"]),
        rewards=from_json(row["rewards"]),
        reward=row["reward"],
        metadata=from_json(row["metadata"]),
    )


def _pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def _unpack_ids(blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // 4}i", blob)
