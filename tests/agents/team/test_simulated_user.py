"""The simulated user is a role of its own: attributed separately, frozen by default."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from midstream import api
from midstream.agents.config import FlowConfig, RoleConfig
from midstream.agents.registry import with_frozen_roles
from midstream.core.errors import ConfigError
from midstream.core.types import Trajectory
from midstream.learn.config import TrainConfig


@pytest.fixture
def converse(make_worker, by_role, attempt):
    """A trajectory of a conversation."""

    def run(
        settings: dict[str, Any] | None = None, roles: Any = None, task: dict[str, Any] | None = None, **replies: Any
    ) -> Trajectory:
        worker = make_worker(by_role(**replies), "simulated_user", roles=roles, settings=settings or {})
        return asyncio.run(worker.run(attempt("Book a table.", **(task or {}))))

    return run


def test_the_user_answers_until_it_has_what_it_wanted(converse) -> None:
    made = converse(assistant=["For how many?", "Booked."], user=["For two.", "DONE, thanks"])
    assert (made.answer, made.metadata["outcome"], made.turns) == ("Booked.", "user_done", 2)
    assert [step.role for step in made.steps] == ["assistant", "user", "assistant", "user"]
    assert made.steps[2].messages[-1] == {"role": "user", "content": "For two."}
    # The user has its own view: its goal, and what the assistant said.
    assert "Goal: Book a table." in made.steps[1].messages[0]["content"]
    assert made.steps[1].messages[-1] == {"role": "user", "content": "For how many?"}
    assert made.steps[2].parent == 0 and made.steps[3].parent == 1


def test_the_users_steps_are_not_trained_on_unless_asked(converse) -> None:
    replies: dict[str, Any] = {"assistant": "For how many?", "user": "DONE"}
    plain = converse(**replies)
    assert [step.trainable for step in plain.steps] == [True, False]
    assert not any(plain.steps[1].loss_mask) and any(plain.steps[0].loss_mask)
    sampled = converse(roles={"user": RoleConfig.model_validate({"sampling": {"max_tokens": 4}})}, **replies)
    assert [step.trainable for step in sampled.steps] == [True, False]
    asked = converse(roles={"user": RoleConfig(train=True)}, **replies)
    assert [step.trainable for step in asked.steps] == [True, True]


@pytest.mark.parametrize(
    ("given", "engine", "train"),
    [
        (None, "frozen", False),
        (RoleConfig(), "frozen", False),
        (RoleConfig(train=True), "policy", True),
        (RoleConfig(train=False), "policy", False),
        (RoleConfig(engine="rules"), "rules", None),
        (RoleConfig(engine="http://x", model="m"), "http://x", None),
    ],
)
def test_which_engine_a_frozen_role_gets(given: RoleConfig | None, engine: str, train: bool | None) -> None:
    roles = {} if given is None else {"user": given}
    flow = with_frozen_roles(FlowConfig(name="simulated_user", roles=roles))
    assert (flow.roles["user"].engine, flow.roles["user"].train) == (engine, train)
    other = FlowConfig(name="react", roles={"policy": RoleConfig()})
    assert with_frozen_roles(other) is other


def test_the_user_can_begin(converse) -> None:
    made = converse({"opening": "user"}, user=["A table, please.", "DONE"], assistant="Booked.")
    assert [step.role for step in made.steps] == ["user", "assistant", "user"]
    assert made.steps[1].messages == ({"role": "user", "content": "A table, please."},)


def test_a_scripted_user_needs_no_model(converse) -> None:
    roles = {"user": RoleConfig(engine="rules")}
    made = converse(roles=roles, task={"user_turns": ["For two."]}, assistant=["For how many?", "Booked."])
    assert [step.role for step in made.steps] == ["assistant", "assistant"] and made.answer == "Booked."


@pytest.mark.parametrize(
    ("settings", "assistant", "user", "outcome", "turns"),
    [
        ({"max_turns": 2}, ["1", "2", "3"], ["a", "b", "c"], "max_turns", 2),
        ({"max_turns": 9}, "What?", "What?", "no_progress", 3),
    ],
)
def test_a_conversation_that_goes_nowhere_ends(converse, settings, assistant, user, outcome: str, turns: int) -> None:
    made = converse(settings, assistant=assistant, user=user)
    assert (made.metadata["outcome"], made.turns) == (outcome, turns)


def test_replacing_the_task_keeps_the_goal_hidden_from_the_agent(converse) -> None:
    made = converse(task={"user_goal": "a table by the window"}, assistant="Booked.", user="DONE")
    assert "by the window" in made.steps[1].messages[0]["content"]
    assert "by the window" not in str(made.steps[0].messages)
    assert replace(made, steps=()).steps == ()


def test_a_gateway_that_trains_every_role_refuses_a_frozen_one() -> None:
    config = {"tasks": {"sources": [{"type": "direct"}]}, "flow": {"name": "simulated_user"}}
    with pytest.raises(ConfigError, match=r"flow\.roles\.user: with a gateway, every role .* is trained"):
        api.rollout(TrainConfig.model_validate(config), "http://127.0.0.1:1")
