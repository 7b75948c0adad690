"""Environments of other projects, from their packages (`make test-environments`)."""

from __future__ import annotations

import asyncio
import random

import pytest

from midstream.core.environments import Environment, Outcome
from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Task
from midstream.tasks.environments import environment_tasks, make_environment

pytestmark = pytest.mark.environments


def opened(task: Task) -> tuple[Environment, str]:
    environment = make_environment(task.metadata["environment"])
    (message,) = asyncio.run(environment.reset())
    return environment, message["content"]


def played(task: Task, *actions: str) -> list[Outcome]:
    environment, _ = opened(task)
    outcomes: list[Outcome] = []
    for action in actions:
        outcomes.append(asyncio.run(environment.act(action)))
        if outcomes[-1].done:
            break
    asyncio.run(environment.close())
    return outcomes


@pytest.mark.parametrize("kind", ["leg_counting", "basic_arithmetic", "gcd"])
def test_reasoning_gym_grades_its_own_answers(kind: str) -> None:
    tasks = environment_tasks("reasoning_gym", kind, {}, 0)
    for split in ("train", "val", "test"):
        for index in range(3):
            task = tasks.get(split, index)
            _, question = opened(task)
            assert question == task.question
            (right,) = played(task, f"I think <answer>{task.answer}</answer>")
            (wrong,) = played(task, "no idea")
            assert (right.reward, wrong.reward) == (1.0, 0.0) and right.done and wrong.done
    train = {tasks.get("train", index).question for index in range(60)}
    assert not train & {tasks.get("test", index).question for index in range(20)}


def test_frozen_lake_is_text_and_pays_at_the_goal() -> None:
    tasks = environment_tasks("gymnasium", "FrozenLake-v1", {"is_slippery": False}, 0)
    task = tasks.get("train", 0)
    _, text = opened(task)
    assert text == (
        "You act in FrozenLake. Each turn you are shown its state. Reply with one action: left, down, right, up.\n"
        "[S]FFF\nFHFH\nFFFH\nHFFG"
    )
    way = ["go down", "DOWN!", "right", "left, no: right", "What?", "down", "right"]
    outcomes = played(task, *way)
    assert [outcome.reward for outcome in outcomes] == [0, 0, 0, 0, 0, 0, 1] and outcomes[-1].done
    assert outcomes[0].observation == "(Down)\nSFFF\n[F]HFH\nFFFH\nHFFG"
    assert outcomes[4].observation == "That is no action. Reply with one of: left, down, right, up."


def test_blackjack_repeats_by_seed() -> None:
    tasks = environment_tasks("gymnasium", "Blackjack-v1", {}, 0)
    openings = [opened(tasks.get("train", index))[1] for index in range(12)]
    assert openings == [opened(tasks.get("train", index))[1] for index in range(12)] and len(set(openings)) > 6
    assert "your sum, the dealer's card" in openings[0]
    results = [played(tasks.get("train", index), "stick")[-1] for index in range(30)]
    assert all(result.done for result in results) and {result.reward for result in results} >= {1.0, -1.0}


@pytest.mark.parametrize(
    ("env", "settings", "says"),
    [
        ("os:Env-v0", {}, "would import a module"),
        ("FrozenPond-v1", {}, "makes no environment"),
        ("FrozenLake-v1", {"colour": 1}, "makes no environment"),
        ("FrozenLake-v1", {"actions": ["left"]}, "has 4 actions, and 1 are named"),
        ("Pendulum-v1", {}, "only discrete actions"),
    ],
)
def test_what_gymnasium_cannot_offer_as_text_is_refused(env: str, settings: dict[str, object], says: str) -> None:
    with pytest.raises((ConfigError, TaskError), match=says):
        environment_tasks("gymnasium", env, settings, 0)


def test_a_number_is_guessed_in_textarena() -> None:
    tasks = environment_tasks("textarena", "GuessTheNumber-v0", {}, 0)
    environment, text = opened(tasks.get("train", 0))
    assert "between 1 and 20" in text and text.count("Guess The Number") == 1
    low, high = 1, 20
    while True:
        guess = (low + high) // 2
        outcome = asyncio.run(environment.act(f"I say [{guess}]"))
        if outcome.done:
            break
        # Each observation is what is new, and never the agent's own reply.
        assert "I say" not in outcome.observation and "between" not in outcome.observation
        low, high = (guess + 1, high) if "higher" in outcome.observation else (low, guess - 1)
    assert outcome.reward == 1.0


def test_textarena_plays_alike_whatever_else_draws_random_numbers() -> None:
    task = environment_tasks("textarena", "Mastermind-v0", {}, 0).get("val", 1)
    guesses = ["[1 2 3 4]", "[3 4 5 6]", "nonsense", "[6 1 2 5]"]
    random.seed(1)
    before = random.getstate()
    first = played(task, *guesses)
    assert random.getstate() == before
    random.random()
    assert played(task, *guesses) == first
    assert any("invalid" in outcome.observation for outcome in first)


@pytest.mark.parametrize(
    ("env", "says"), [("TicTacToe-v0", "does not start for one player"), ("GuessTheNumbr-v0", "GuessTheNumber-v0")]
)
def test_a_game_that_is_not_for_one_player_or_not_there_is_refused(env: str, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        environment_tasks("textarena", env, {}, 0)
