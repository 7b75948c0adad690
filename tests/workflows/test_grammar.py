"""Every sentence of the grammar is a valid workflow, and a policy without training writes one under it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

import midstream.api  # noqa: F401  offers the flow by its name
from midstream.agents.config import FlowConfig
from midstream.core.errors import ConfigError
from midstream.core.types import Task, Trajectory
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.workflows import OPERATORS, check_text
from midstream.workflows.grammar import random_sentence, workflow_constraint
from midstream.workflows.operators import AFLOW_SETS
from midstream.workflows.problems import errors


@pytest.mark.parametrize("names", [tuple(OPERATORS), AFLOW_SETS["math"], ("Custom",), ("Programmer", "Review")])
def test_every_sentence_is_a_workflow_that_may_run(names: tuple[str, ...]) -> None:
    operators, rng, seen = OPERATORS.only(names), random.Random(1), set()
    for _ in range(150):
        checked = check_text(random_sentence(operators, rng), operators)
        assert checked.workflow is not None and not errors(checked.problems), checked.problems
        seen.add(checked.workflow)
    assert len(seen) > 5


def test_a_grammar_needs_an_operator_to_start_with() -> None:
    engine = {"policy": RoleEngine(None, None, True)}  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="needs Custom, AnswerGenerate or Programmer"):
        flow = FlowConfig(name="workflow_writer", settings={"constrained": True, "operators": ["Review"]})
        AgentFlowWorker(flow, engine, sampling=SamplingConfig())


def test_an_untrained_policy_writes_a_valid_workflow_under_the_grammar(make_policy: Callable[..., Any]) -> None:
    policy = make_policy("float32", rank=4)
    executor = ScriptedEngine(policy.tokenizer, "<answer>42</answer>")
    worker = AgentFlowWorker(
        FlowConfig(
            name="workflow_writer",
            settings={"constrained": True, "operators": ["Custom"], "guide": "Write.", "example": ""},
        ),
        {"policy": policy.role_engine, "executor": RoleEngine(executor, policy.tokenizer, False)},
        sampling=SamplingConfig(max_tokens=1200, temperature=1.0),
    )

    async def attempt() -> Trajectory:
        task = Task(id="t", prompt="What is 15 + 27?", answer="42", kind="math")
        return await worker.run(Attempt(task=task, uid="u", prompt_uid="p", seed=3))

    ran = asyncio.run(attempt())
    assert ran.error == ""
    assert ran.metadata["workflow"]["valid"], (ran.steps[0].text, ran.metadata)
    assert ran.steps[0].trainable and ran.answer is not None
    assert workflow_constraint(OPERATORS.only(["Custom"])).kind == "lark"
