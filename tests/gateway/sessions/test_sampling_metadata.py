"""A step records how its sampling was altered."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("asked", "found", "temperature"),
    [
        ({}, None, 1.0),
        ({"temperature": 0.6, "max_tokens": 9, "seed": 3, "stop": ["x"]}, None, 0.6),
        ({"temperature": 0}, {"greedy": True}, 1.0),
        ({"top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5}, 1.0),
        ({"min_p": 0.1, "repetition_penalty": 1.3}, {"min_p": 0.1, "repetition_penalty": 1.3}, 1.0),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"constraint": "json_schema"},
            1.0,
        ),
    ],
)
def test_a_step_records_altered_sampling(start: Start, asked: Any, found: Any, temperature: float) -> None:
    opened = start('{"a": 1}').open()
    assert opened.chat(**asked).status_code == 200
    (step,) = opened.steps
    assert step.metadata.get("sampling") == found
    assert step.temperature == temperature and step.trainable


def test_a_required_tool_is_a_constraint_and_an_offered_one_is_not(start: Start) -> None:
    opened = start("Hello.").open()
    opened.chat(tools=[TOOL], tool_choice="required")
    opened.chat(tools=[TOOL])
    held, free = opened.steps
    assert set(held.metadata["sampling"]) == {"constraint"} and "sampling" not in free.metadata


def test_sampling_fixed_by_the_config_is_plain(start: Start) -> None:
    held = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}
    opened = start(sampling=held).open()
    opened.chat(temperature=0, top_p=0.5, top_k=3, presence_penalty=1.0)
    assert "sampling" not in opened.steps[0].metadata


def test_a_step_generated_here_and_submitted_later_keeps_its_sampling(start: Start) -> None:
    served = start()
    asked = {"prompt_ids": [5, 6], "temperature": 0}
    told = served.post("/generate", asked).json()
    assert told["sampling"] == {"greedy": True}
    assert "sampling" not in served.post("/generate", {"prompt_ids": [5, 6]}).json()
    step = {name: told[name] for name in ("prompt_ids", "response_ids")} | {"rollout_log_probs": told["log_probs"]}
    names = {"trajectory_uid": "u", "prompt_uid": "p", "step_index": 0, "metadata": {"sampling": told["sampling"]}}
    assert served.post("/submit_steps", {"steps": [step | names]}).status_code == 200
    assert served.steps("u")[0].metadata["sampling"] == {"greedy": True}


def test_a_submission_cannot_change_the_recorded_sampling(start: Start) -> None:
    served = start()
    told = served.post("/generate", {"messages": HELLO, "trajectory_uid": "u", "prompt_uid": "p", "top_k": 3}).json()
    step = {name: told[name] for name in ("prompt_ids", "response_ids", "step_index")}
    names = {"trajectory_uid": "u", "prompt_uid": "p", "reward": 1.0, "metadata": {"sampling": {}, "mine": 1}}
    assert served.post("/submit_steps", {"steps": [step | names]}).status_code == 200
    (kept,) = served.steps("u")
    assert (kept.metadata["sampling"], kept.metadata["mine"], kept.reward) == ({"top_k": 3}, 1, 1.0)
