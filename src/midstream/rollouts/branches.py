"""Branches: attempts that begin with the first steps of a recorded one and then go on by themselves (tree rollouts).

The flow runs again from its start. In the shared part the model's replies and the results of tools come from the
original, so that nothing is sampled and no effect happens twice; tools with state and environments act again. The
shared steps belong to the original and are not trained on in a branch. Branches and original are one group.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from midstream.agents.resume import EarlierCalls
from midstream.core.errors import ConfigError
from midstream.core.seeds import derive_seed
from midstream.core.types import FinishReason, Step, Trajectory
from midstream.engines.base import Completion, Engine, Request
from midstream.record.recorder import RoleEngine
from midstream.record.replay import completion_of
from midstream.rollouts.attempts import Attempt, Branch
from midstream.rollouts.reruns import EngineWrapper, call_key

Prompt = tuple[str, str]
"""Role and prompt of a call."""


def branches_of(attempt: Attempt, original: Trajectory, at: int, count: int) -> list[Attempt]:
    """Return `count` attempts that share the first `at` steps of `original`, the trajectory of `attempt`.

    Raises `ConfigError` if `original` has no step number `at` (from 0), was interrupted before it, or is a re-run
    without a role."""
    if attempt.rerun is not None:
        raise ConfigError(f"'{original.uid}' is a re-run without a role; branch at a step of its original instead")
    if not 0 <= at < len(original.steps):
        raise ConfigError(
            f"'{original.uid}' has no step {at} to branch at", f"it has the steps 0 to {len(original.steps) - 1}"
        )
    if cut := [step.step_index for step in original.steps[:at] if step.finish_reason == FinishReason.INTERRUPTED]:
        raise ConfigError(f"step {cut[0]} of '{original.uid}' was interrupted; branch at this step or before it")
    return [
        replace(
            attempt,
            uid=f"{attempt.uid}-branch-{at}-{number}",
            seed=derive_seed(attempt.seed, "branch", at, number),
            branch=Branch(original, at),
        )
        for number in range(count)
    ]


def branch_engines(
    role_engines: Mapping[str, RoleEngine], branch: Branch, answered: Sequence[Step] = ()
) -> dict[str, RoleEngine]:
    """Return the engines of a branch, of which the calls of the steps `answered` were made before its process died."""
    shared: defaultdict[Prompt, deque[Step]] = defaultdict(deque)
    for step in branch.original.steps[: branch.at]:
        shared[step.role, call_key(step)].append(step)
    for step in answered:
        if known := shared.get((step.role, call_key(step))):
            known.popleft()
    return {
        role: replace(role_engine, engine=SharedEngine(role_engine.engine, shared))
        for role, role_engine in role_engines.items()
    }


def shared_calls(branch: Branch) -> EarlierCalls:
    """Return the tool calls of the shared steps."""
    return EarlierCalls(call for call in branch.original.tool_calls if (call.step_index or 0) < branch.at)


def misses(branch: Branch, trajectory: Trajectory) -> str:
    """Return how `trajectory` left its original before the branch; empty if it did not."""
    for step in branch.original.steps[: branch.at]:
        own = trajectory.steps[step.step_index] if step.step_index < len(trajectory.steps) else None
        if own is None or _compared(own) != _compared(step):
            return f"step {step.step_index} is not that of '{branch.original.uid}', which it should share"
    return ""


def _compared(step: Step) -> tuple[object, ...]:
    """What a shared step has in common with the original. Steps of engines without tokens have only texts."""
    return step.role, call_key(step), step.response_ids, step.text


class SharedEngine(EngineWrapper):
    """Repeats the `shared` steps of the original to calls with the same role and prompt, each once; other calls go to
    `engine`."""

    def __init__(self, engine: Engine, shared: Mapping[Prompt, deque[Step]]) -> None:
        super().__init__(engine)
        self._shared = shared

    async def generate(self, request: Request) -> Completion:
        known = self._shared.get((request.role, call_key(request)))
        if not known:
            return await self._engine.generate(request)
        return replace(completion_of(known.popleft()), trainable=False)
