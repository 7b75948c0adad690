"""Attempts that share the first steps of a recorded one, and then go on by themselves."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream.core.errors import ConfigError
from midstream.core.types import FinishReason, Status, Trajectory
from midstream.engines.base import Request
from midstream.record.store import Store
from midstream.rollouts import branches_of
from midstream.rollouts.attempts import Branch, Rerun
from midstream.rollouts.branches import misses
from midstream.rollouts.reruns import rerun_of
from midstream.tools import tool

rung: list[str] = []


@tool
async def ring(where: str) -> str:
    """Ring a bell."""
    rung.append(where)
    return f"rang at {where}, bell {len(rung)}"


@pytest.fixture(autouse=True)
def _nothing_rang() -> None:
    rung.clear()


class Says:
    """Rings twice, thinks of the seed of the call, and answers."""

    def __init__(self) -> None:
        self.heard: list[Request] = []

    def __call__(self, request: Request) -> str:
        self.heard.append(request)
        said = sum(message["role"] == "assistant" for message in request.messages)
        return json.dumps(
            [
                {"action": "call_api", "tool": "ring", "args": {"where": "a"}},
                {"action": "call_api", "tool": "ring", "args": {"where": "a"}},
                {"action": "reasoning", "thought": str(request.sampling.seed)},
                {"action": "answer", "answer": "rang"},
            ][said]
        )


def branched(
    make_worker: Any, attempt: Any, at: int, count: int = 2, **settings: Any
) -> tuple[Trajectory, list[Trajectory], Says]:
    says = Says()
    worker = make_worker(says, "react", tools=(f"{__name__}:ring",), **settings)

    async def run() -> tuple[Trajectory, list[Trajectory]]:
        given = attempt()
        original = await worker.run(given)
        return original, [await worker.run(one) for one in branches_of(given, original, at, count)]

    return *asyncio.run(run()), says


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_branch_shares_the_steps_and_results_before_it_and_samples_the_rest(
    make_worker: Any, attempt: Any, at: int
) -> None:
    original, branches, says = branched(make_worker, attempt, at)
    assert len(says.heard) == 4 + 2 * (4 - at) and len(rung) == 2 + 2 * max(0, 2 - at)
    for branch in branches:
        assert branch.status is Status.COMPLETED and branch.prompt_uid == original.prompt_uid
        assert branch.metadata["branch_of"] == original.uid and branch.metadata["branch_at"] == at
        shared = [(one.prompt_ids, one.response_ids, one.rollout_log_probs) for one in branch.steps[:at]]
        assert shared == [(one.prompt_ids, one.response_ids, one.rollout_log_probs) for one in original.steps[:at]]
        assert [step.trainable for step in branch.steps] == [False] * at + [True] * (4 - at)
        assert [one.result for one in branch.tool_calls][:at] == [one.result for one in original.tool_calls][:at]
    thoughts = {made.steps[2].text for made in (original, *branches)}
    assert len(thoughts) == (3 if at <= 2 else 1)


@tool
async def pay(amount: int) -> str:
    """Pay."""
    rung.append(str(amount))
    return f"payment {len(rung)}"


def test_a_shared_call_is_found_whose_arguments_were_coerced(make_worker: Any, attempt: Any) -> None:
    def says(request: Request) -> str:
        paid = any(message["role"] == "assistant" for message in request.messages)
        call = {"action": "call_api", "tool": "pay", "args": {"amount": "5"}}
        return json.dumps({"action": "answer", "answer": "paid"} if paid else call)

    async def run() -> list[Trajectory]:
        worker, given = make_worker(says, "react", tools=(f"{__name__}:pay",)), attempt()
        original = await worker.run(given)
        return [original, *[await worker.run(one) for one in branches_of(given, original, 1, 1)]]

    original, branch = asyncio.run(run())
    assert rung == ["5"] and [call.arguments for call in original.tool_calls] == [{"amount": 5}]
    assert [call.result for call in branch.tool_calls] == ["payment 1"] and branch.status is Status.COMPLETED


def test_shared_calls_count_against_the_budget(make_worker: Any, attempt: Any) -> None:
    original, (branch,), _ = branched(make_worker, attempt, 1, 1, max_tool_calls=1)
    assert [call.error_kind for call in original.tool_calls] == ["", "over_budget"]
    assert [call.error_kind for call in branch.tool_calls] == ["", "over_budget"] and rung == ["a"]


def test_branches_are_recorded_with_their_original(make_worker: Any, attempt: Any, tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite", "normal") as store:
        original, branches, _ = branched(make_worker, attempt, 2, worker={"store": store, "resume": True})
        for branch in branches:
            kept = store.trajectories.get(branch.uid)
            assert kept.steps == branch.steps and kept.metadata["branch_of"] == original.uid
    assert rung == ["a", "a"]


def test_a_flow_that_goes_another_way_fails_and_says_where(make_worker: Any, attempt: Any) -> None:
    given, worker = attempt(), make_worker(Says(), "react", tools=(f"{__name__}:ring",))
    original = asyncio.run(worker.run(given))
    (branch,) = branches_of(given, original, 2, 1)
    other = make_worker(Says(), "react", tools=(f"{__name__}:ring",), settings={"max_actions": 5})
    failed = asyncio.run(other.run(replace(branch, uid="v")))
    assert failed.status is Status.FAILED and failed.metadata["failure"] == "infrastructure"
    assert failed.error == "step 0 is not that of 'u', which it should share"


def test_a_step_that_is_not_there_is_refused(make_worker: Any, attempt: Any) -> None:
    original, _, _ = branched(make_worker, attempt, 0, 0)
    for at in (-1, 4):
        with pytest.raises(ConfigError, match="it has the steps 0 to 3"):
            branches_of(attempt(), original, at, 1)


def test_a_rerun_without_a_role_is_not_branched(make_worker: Any, attempt: Any) -> None:
    original, _, _ = branched(make_worker, attempt, 0, 0)
    with pytest.raises(ConfigError, match="is a re-run without a role"):
        branches_of(replace(attempt(), rerun=Rerun(original, "policy", "")), original, 1, 1)


@pytest.mark.parametrize("change", [{"text": "No."}, {"messages": ({"role": "user", "content": "Why?"},)}])
def test_a_step_without_tokens_is_compared_by_its_texts(make_worker: Any, attempt: Any, change: Any) -> None:
    original, _, _ = branched(make_worker, attempt, 0, 0)
    steps = tuple(replace(step, prompt_ids=(), response_ids=(), rollout_log_probs=None) for step in original.steps)
    original = replace(original, steps=steps)
    other = replace(original, steps=(steps[0], replace(steps[1], **change), *steps[2:]))
    assert misses(Branch(original, 2), original) == misses(Branch(original, 1), other) == ""
    assert misses(Branch(original, 2), other).startswith("step 1 is not that of")


def test_a_trajectory_is_not_branched_behind_a_step_that_was_interrupted(make_worker: Any, attempt: Any) -> None:
    original, _, _ = branched(make_worker, attempt, 0, 0)
    first, *rest = original.steps
    cut = replace(original, steps=(replace(first, finish_reason=FinishReason.INTERRUPTED), *rest))
    assert len(branches_of(attempt(), cut, 0, 2)) == 2
    with pytest.raises(ConfigError, match="step 0 of 'u' was interrupted"):
        branches_of(attempt(), cut, 1, 1)


def test_a_branch_is_repeated_without_a_role(make_worker: Any, attempt: Any) -> None:
    given, worker = attempt(), make_worker(Says(), "react", tools=(f"{__name__}:ring",))
    original = asyncio.run(worker.run(given))
    (branch,) = branches_of(given, original, 2, 1)
    made = asyncio.run(worker.run(branch))
    rerun = asyncio.run(worker.run(rerun_of(branch, made, "policy", "nothing")))
    assert rerun.metadata["rerun_of"] == branch.uid and "branch_of" not in rerun.metadata
    assert {step.text for step in rerun.steps} == {"nothing"}
