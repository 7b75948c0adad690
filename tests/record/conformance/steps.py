"""A task and steps for tests of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from midstream.core.types import FinishReason, Step, Task

TASK = Task(id="t1", prompt="How many?", answer=["3", 3], metadata={"needs": ("search",), "by_year": {7: None}})


def a_step(uid: str, index: int = 0, **changes: Any) -> Step:
    step = Step(
        prompt_ids=(1, 2, 3),
        response_ids=(4, 5),
        rollout_log_probs=(-0.1, -1e-300),
        trajectory_uid=uid,
        prompt_uid="p",
        step_index=index,
        finish_reason=FinishReason.STOP,
    )
    return replace(step, **changes)
