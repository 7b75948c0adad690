"""Answers the model calls of a resumed attempt from the steps recorded before its process died.

A call with a key is found by its key, so concurrent calls may come in any order. A call without a key is found by its
position: the n-th call gets the n-th step. The call must equal the recorded one, otherwise the attempt has diverged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from midstream.core.errors import MidstreamError
from midstream.core.types import FinishReason, Step
from midstream.engines.base import Completion
from midstream.store.exact_json import to_json

if TYPE_CHECKING:
    from midstream.record.recorder import Call, RoleEngine

CALL_KEY = "call_key"
"""Metadata key of a step: the key of its call."""


class Diverged(MidstreamError):
    """A resumed attempt does something else than recorded, so its record cannot be used. The attempt starts again."""


class RecordedSteps:
    """The steps of an unfinished attempt. Each is returned at most once."""

    def __init__(self, steps: Iterable[Step]) -> None:
        complete = [step for step in steps if step.finish_reason != FinishReason.INTERRUPTED]
        self.keyed = {step.metadata[CALL_KEY]: step for step in complete if CALL_KEY in step.metadata}
        taken = {step.step_index for step in self.keyed.values()}
        self.size = max((step.step_index for step in complete), default=-1) + 1
        """Number of indices up to the last recorded step."""
        self._by_index = {step.step_index: step for step in complete if step.step_index not in taken}
        self._open = deque(index for index in range(self.size) if index not in taken)
        self.diverged = ""
        """How the attempt diverged; empty if it has not."""
        self.answered = 0
        """Number of calls answered so far."""

    def position(self) -> int | None:
        """Index of the next call without a key; None after the recorded ones. Each call takes one."""
        return self._open.popleft() if self._open else None

    def answer(self, call: Call, index: int | None, role_engine: RoleEngine) -> Step | None:
        """Return the recorded step of `call`; None if the call was not made or not answered. Raises `Diverged` if
        another call is recorded in its place."""
        if self.diverged:
            raise Diverged(self.diverged)
        step = self.keyed.get(call.key) if call.key else self._by_index.get(-1 if index is None else index)
        if step is None:
            return None
        if problem := _difference(step, call, role_engine):
            raise self._divergence(f"call {call.key or index}: {problem}")
        self._by_index.pop(step.step_index, None)
        self.answered += 1
        return step

    def check_complete(self) -> None:
        """Raise `Diverged` if the attempt ended without repeating a recorded call. Calls with a key need not be
        repeated: their answers are kept elsewhere, such as in the journal of a plan."""
        if self._by_index and not self.diverged:
            raise self._divergence(f"call {min(self._by_index)} was not made again")

    def _divergence(self, problem: str) -> Diverged:
        self.diverged = problem
        return Diverged(problem)


def completion_of(step: Step) -> Completion:
    """Return the completion from which a recorded step was made."""
    return Completion(
        ids=step.response_ids,
        log_probs=step.rollout_log_probs or (0.0,) * len(step.response_ids),
        text=step.text,
        finish_reason=FinishReason(step.finish_reason),
        policy_version=step.policy_version,
        adapter=step.adapter,
        latency_s=step.latency_s,
        over_allowed=step.constraint is not None,
    )


def _difference(step: Step, call: Call, role_engine: RoleEngine) -> str:
    """Return why `call` is not the recorded one; empty if it is."""
    if step.role != call.role:
        return f"it was made by '{step.role}', and now by '{call.role}'"
    if call.prompt_ids is not None and call.prompt_ids != step.prompt_ids:
        return "its prompt differs"
    if _text(step.messages) != _text(call.messages):
        return "its messages differ"
    if _text(step.tools) != _text(call.tools):
        return "its tools differ"
    if step.temperature != (call.sampling.temperature or 1.0) or (
        step.constraint is not None and step.constraint != call.constraint
    ):
        return "its sampling settings differ"
    engine = role_engine.engine
    adapter = role_engine.adapter or getattr(engine, "adapter", step.adapter)
    if step.adapter != adapter:
        return f"the adapter '{step.adapter}' answered it, and now '{adapter}' would"
    if step.policy_version > engine.policy_version:
        return f"version {step.policy_version} of the weights answered it, which this engine does not have"
    return ""


def _text(value: object) -> str:
    return to_json(value, "a recorded call")
