"""Demonstrations of teams: the replies of each role, as the task has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from midstream.agents.config import FlowConfig
from midstream.agents.registry import find_flow
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.core.types import Status, Task, Trajectory
from midstream.engines.chat import ChatTokenizer
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.tools import Toolbox

SETTINGS: dict[str, Any] = {"members": {"a": {}, "b": {}}, "topology": "ring", "constrained": True}
WRITTEN = {"a": ["one", "three"], "b": ["two", '{"answer": "four"}']}


@pytest.fixture
def demonstrate(tiny_tokenizer: ChatTokenizer) -> Callable[..., Any]:
    """A demonstrator of the ring."""

    def make(wrong: float = 0.0) -> Any:
        flow = find_flow("peers")
        settings = parse_config(flow.settings, SETTINGS, "flow.settings")
        return flow.demonstrator(settings, tiny_tokenizer, Toolbox([]), wrong=wrong, seed=0)

    return make


def shown(demonstrator: Any, tokenizer: ChatTokenizer, written: Any) -> Trajectory:
    task = Task(id="t", prompt="Count.", metadata={"demonstration": written})
    demonstrator.assign({"u": task}, {})
    flow = FlowConfig(name="peers", settings=SETTINGS)
    worker = AgentFlowWorker(flow, {"policy": RoleEngine(demonstrator, tokenizer, True)}, sampling=SamplingConfig())
    return asyncio.run(worker.run(Attempt(task=task, uid="u", prompt_uid="p", seed=0)))


def test_roles_write_their_replies_in_order(demonstrate, tiny_tokenizer: ChatTokenizer) -> None:
    made = shown(demonstrate(), tiny_tokenizer, WRITTEN)
    assert [(step.role, step.text) for step in made.steps] == [
        ("a", "one"),
        ("b", "two"),
        ("a", "three"),
        ("b", '{"answer": "four"}'),
    ]
    assert made.answer == "four" and all(step.trainable for step in made.steps)


def test_a_reply_too_few_ends_the_attempt(demonstrate, tiny_tokenizer: ChatTokenizer) -> None:
    made = shown(demonstrate(), tiny_tokenizer, {"a": ["one"], "b": ["two"]})
    assert made.status is not Status.COMPLETED and "has 1 replies of 'a'" in made.error


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (None, "has none"),
        ([{"tool": "search", "arguments": {}}], "not an object of replies by role"),
        ({"a": "one"}, "not an object of replies by role"),
        ({"a": ["one"], "c": ["two"]}, "'c', which is no role"),
    ],
)
def test_malformed_demonstrations_are_refused(demonstrate, written: Any, reason: str) -> None:
    metadata = {} if written is None else {"demonstration": written}
    with pytest.raises(ConfigError, match=reason):
        demonstrate().check(Task(id="t", prompt="Count.", metadata=metadata))


def test_wrong_first_actions_are_not_made_up(demonstrate) -> None:
    assert demonstrate().roles == ("a", "b")
    with pytest.raises(ConfigError, match=r"warm_start\.wrong"):
        demonstrate(wrong=0.5)
