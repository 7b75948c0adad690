"""User feedback becomes reward; without feedback there is none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.types import Message, Step, Task, Trajectory
from midstream.rewards.compose import RewardConfig, RewardFunction
from midstream.rewards.feedback import verdict

COMPONENTS = ("thumbs", "rating", "correction", "next_user_turn")


def item(kind: str, value: float | None = None, text: str = "", step_index: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "value": value, "text": text, "step_index": step_index, "key": None, "created_at": 0.0}


def a_trajectory(*steps: Step, feedback: tuple[dict[str, Any], ...] = (), answer: str | None = "Paris") -> Trajectory:
    task = Task(id="t", prompt="Where?")
    return Trajectory(
        uid="u", prompt_uid="p", task=task, steps=steps, answer=answer, metadata={"feedback": list(feedback)}
    )


def a_step(index: int, text: str, *messages: Message) -> Step:
    return Step(prompt_ids=(1,), response_ids=(2,), step_index=index, text=text, messages=messages)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str | None) -> Message:
    return {"role": "assistant", "content": text}


def scored(trajectory: Trajectory) -> Trajectory:
    result = asyncio.run(RewardFunction(RewardConfig(components=dict.fromkeys(COMPONENTS, 1.0))).score(trajectory))
    assert result.error == ""
    return result


def test_without_feedback_there_is_no_reward() -> None:
    silent = a_trajectory(a_step(0, "Paris", user("Where?")))
    for trajectory in (silent, Trajectory(uid="u", prompt_uid="p", task=Task(id="t", prompt="?"))):
        result = scored(trajectory)
        assert result.reward is None and [result.rewards[name] for name in COMPONENTS] == [None] * 4


def test_thumbs_and_ratings_are_averaged_and_comments_ignored() -> None:
    feedback = (item("thumbs", 1), item("thumbs", -1), item("thumbs", 1, step_index=0), item("rating", 0.25))
    result = scored(a_trajectory(a_step(0, "Paris"), feedback=(*feedback, item("comment", text="thanks"))))
    assert (result.rewards["thumbs"], result.rewards["rating"]) == (pytest.approx(1 / 3), 0.25)
    assert result.rewards["correction"] is None


def test_a_correction_is_scored_by_its_overlap_with_the_original() -> None:
    steps = (a_step(0, "It lies in France"), a_step(1, "Lyon"))
    assert scored(a_trajectory(*steps, feedback=(item("correction", text="Paris"),))).rewards["correction"] == 1.0
    halves = (item("correction", text="It lies in Italy", step_index=0), item("correction", text="Rome"))
    assert scored(a_trajectory(*steps, feedback=halves)).rewards["correction"] == pytest.approx((3 / 4 + 0) / 2)
    without_answer = a_trajectory(*steps, feedback=(item("correction", text="Lyon"),), answer=None)
    assert scored(without_answer).rewards["correction"] == 1.0


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("Thanks!", 1),
        ("ok thank you, and what about Rome?", 1),
        ("Great. Now the next one", 1),
        ("That's right", 1),
        ("That’s correct, it works", 1),
        ("No, I meant the capital", -1),
        ("no that is the wrong city", -1),
        ("Wrong.", -1),
        ("Thanks, but that's wrong", -1),
        ("it still doesn't work", -1),
        ("That is not correct", -1),
        ("That isn't what I wanted", -1),
        ("You forgot the units", -1),
        ("What is the capital of France", -1),
        ("And of Italy?", 0),
        ("No problem", 0),
        ("I know what's wrong with my bike", 0),
        ("Incorrectly spelt words are fine", 0),
        ("Is there a greater one?", 0),
        ("", 0),
    ],
)
def test_the_next_user_message_is_rated_by_rule(message: str, value: int) -> None:
    assert verdict(message, "What is the capital of France?") == value


def test_the_next_user_turn_rates_the_preceding_reply() -> None:
    first = (user("Capital of France?"),)
    second = (*first, assistant("Lyon"), user("No, the capital"))
    third = (*second, assistant("Paris"), user("Thanks! And its river?"))
    steps = (
        a_step(0, "<think>hm</think>Lyon", *first),
        a_step(1, "Paris", *second),
        a_step(2, "The Seine", *third),
    )
    result = scored(a_trajectory(*steps))
    assert result.rewards["next_user_turn"] == 0.0
    # The last step takes the rest, which is nothing here.
    assert [step.reward for step in result.steps] == [-1.0, 1.0, 0.0]


def test_only_the_reply_shown_to_the_user_is_rated() -> None:
    first = (user("Capital of France?"),)
    steps = (
        a_step(0, "Lyon", *first),
        a_step(1, "Paris", *first),
        a_step(2, "The Seine", *first, assistant("Paris"), user("Perfect")),
        a_step(3, "call", *first, assistant(None), {"role": "tool", "content": "wrong"}),
    )
    assert [step.reward for step in scored(a_trajectory(*steps)).steps] == [0.0, 1.0, 0.0, 0.0]
