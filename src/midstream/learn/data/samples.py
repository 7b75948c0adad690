"""Converts a trajectory to a readable row for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.types import Trajectory
from midstream.learn.data.prompts import Decode, new_prompts


def verdicts_of(trajectory: Trajectory) -> dict[int, tuple[bool, str]]:
    """Return the verifier's verdict and reason by the index of the step whose action it judged."""
    noted = trajectory.metadata.get("turns")
    turns = [turn for turn in noted if isinstance(turn, Mapping)] if isinstance(noted, Sequence) else []
    return {
        turn["call"]: (bool(turn.get("verdict")), str(turn.get("reason", "")))
        for turn in turns
        if isinstance(turn.get("call"), int)
    }


def sample_row(
    label: str, step: int, trajectory: Trajectory, success: bool, decode: Decode | None = None
) -> dict[str, Any]:
    """Return question, turns with new prompt text, calls and verdicts, answer and rewards of a trajectory."""
    prompts = new_prompts(trajectory, decode)
    calls = {call.step_index: call for call in trajectory.tool_calls}
    verdicts = {
        place: f"verifier: {'enough' if enough else 'go on'}, {reason}"
        for place, (enough, reason) in verdicts_of(trajectory).items()
    }
    turns: list[dict[str, Any]] = []
    for step_ in trajectory.steps:
        call = calls.get(step_.step_index)
        turn: dict[str, Any] = {
            "role": step_.role,
            "prompt": prompts[step_.step_index],
            "prompt_tokens": len(step_.prompt_ids),
            "text": step_.text,
            "tokens": len(step_.response_ids),
            "reward": step_.reward,
        }
        if call is not None:
            turn |= {"tool": call.tool, "arguments": dict(call.arguments), "result": call.result, "ok": call.ok}
        if step_.step_index in verdicts:
            turn["verdict"] = verdicts[step_.step_index]
        turns.append(turn)
    return {
        "label": label,
        "step": step,
        "kind": trajectory.task.kind,
        "question": trajectory.task.question,
        "reference": trajectory.task.answer,
        "answer": trajectory.answer,
        "success": success,
        "reward": trajectory.reward,
        "rewards": dict(trajectory.rewards),
        "status": str(trajectory.status),
        "error": trajectory.error,
        "turns": turns,
    }
