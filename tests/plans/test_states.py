"""The tables of legal transitions, and that every run keeps to them."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plans.effects import State
from tests.plans.kill import audit, the_answer
from tests.plans.random_plans import handlers, random_plan

from midstream.plans import AgentExecutor, NodeState, RunStatus
from midstream.plans.graph import Graph
from midstream.plans.rows import NodeRow
from midstream.plans.states import (
    ENDED,
    NODE_TRANSITIONS,
    RUN_TRANSITIONS,
    IllegalTransition,
    check_node,
    check_run,
)


class LocalService:
    """The service of `effects.py` in this process."""

    def __init__(self) -> None:
        self._state = State()

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        return self._state.carry_out({"op": op, **request})


def reachable(transitions: Mapping[Any, frozenset[Any]], start: Any) -> set[Any]:
    found, waiting = {start}, [start]
    while waiting:
        for state in transitions[waiting.pop()] - found:
            found.add(state)
            waiting.append(state)
    return found


def test_every_state_can_be_reached_and_left_for_an_end() -> None:
    assert reachable(NODE_TRANSITIONS, NodeState.PENDING) == set(NodeState) == set(NODE_TRANSITIONS)
    assert reachable(RUN_TRANSITIONS, RunStatus.RUNNING) == set(RunStatus) == set(RUN_TRANSITIONS)
    for state in NodeState:
        assert reachable(NODE_TRANSITIONS, state) & {NodeState.SUCCEEDED, NodeState.FAILED, NodeState.SKIPPED}
    for status in RunStatus:
        assert reachable(RUN_TRANSITIONS, status) & ENDED


@given(st.sampled_from(NodeState), st.sampled_from(NodeState))
def test_only_what_the_table_allows_passes(before: NodeState, after: NodeState) -> None:
    if after in NODE_TRANSITIONS[before]:
        check_node("a", before, after)
    else:
        with pytest.raises(IllegalTransition, match=f"node 'a' cannot go from {before} to {after}"):
            check_node("a", before, after)


def test_a_run_that_was_rolled_back_stays_so() -> None:
    for status in RunStatus:
        with pytest.raises(IllegalTransition):
            check_run("r", RunStatus.ROLLED_BACK, status)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.randoms(use_true_random=False), st.integers(0, 2))
def test_random_plans_end_and_take_only_legal_transitions(draw: random.Random, cut: int) -> None:
    """Drawn from one seed each, and interrupted `cut` times by draining."""
    plan, service = random_plan(draw), LocalService()

    async def main(path: Path) -> list[str]:
        for _ in range(cut):
            async with AgentExecutor(path, handlers(service)) as executor:
                running = asyncio.create_task(executor.run(plan, uid="r"))
                for _ in range(draw.randrange(20)):
                    await asyncio.sleep(0)
                await executor.drain()
                await running
        async with AgentExecutor(path, handlers(service)) as executor:
            result = await executor.run(plan, uid="r")
            while result.status is RunStatus.WAITING:
                for question in result.questions:
                    answer = the_answer(service, question.schema, question.prompt)
                    await executor.answer("r", question.id, answer)
                result = await executor.resume("r")
            assert result.status in ENDED
            return executor.database.read(lambda connection: audit(connection, "r", service))

    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(main(Path(folder) / "plans.db")) == []


def test_a_state_the_table_forbids_is_never_taken() -> None:
    from midstream.plans.checks import compile_plan
    from midstream.plans.plan import load_plan

    graph = Graph(compile_plan(load_plan({"nodes": [{"id": "a", "handler": "value"}]}), None), {"": NodeRow()})
    with pytest.raises(IllegalTransition):
        graph.change(graph.root, NodeState.SUCCEEDED)
    assert graph.root.state is NodeState.PENDING and graph.events == []
