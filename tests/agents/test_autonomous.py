"""The `autonomous` flow: its task list, the ledger, stalls, critique, budgets, and ends that have names."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from midstream.agents.autonomous.ledger import Ledger
from midstream.agents.autonomous.turns import UnreadableTurn, read_turn, turn_schema
from midstream.agents.config import RoleConfig
from midstream.agents.registry import find_flow
from midstream.core.errors import ConfigError
from midstream.core.types import Status, ToolCall, Trajectory
from midstream.tools import load_tools

NO_CRITIC = {"critic": RoleConfig(engine="rules")}


def turn(**fields: Any) -> str:
    return json.dumps({"thought": "so", **fields})


def calculate(expression: str, **more: Any) -> str:
    return turn(tool="calculator", args={"expression": expression}, **more)


@pytest.fixture
def run(make_worker, by_role, attempt):
    """A trajectory in which the agent says these things."""

    def run(*says: str, critic: Any = None, question: str = "What is 2 * 3?", **flow: Any) -> Trajectory:
        flow.setdefault("tools", ("calculator", "echo"))
        flow.setdefault("roles", {} if critic else NO_CRITIC)
        worker = make_worker(by_role(policy=list(says), critic=critic or "yes"), "autonomous", **flow)
        return asyncio.run(worker.run(attempt(question)))

    return run


def ended(made: Trajectory) -> tuple[str, str | None, int]:
    assert made.status is Status.COMPLETED, made.error
    return made.metadata["outcome"], made.answer, made.turns


def test_tasks_are_listed_done_and_shown(run) -> None:
    made = run(
        turn(add=["work it out", "answer"]), calculate("2 * 3", done=[]), turn(done=[1, 2], finish="6"), settings={}
    )
    assert ended(made) == ("finished", "6", 3)
    shown = [step.messages[-1]["content"] for step in made.steps]
    assert shown[0] == "Goal: What is 2 * 3?\ntasks: none yet\n[turn 1/16]"
    assert "tasks:\n1. [ ] work it out\n2. [ ] answer\n[turn 2/16]" in shown[1]
    assert '<result tool="calculator">\n6\n</result>' in shown[2]
    assert made.metadata["tasks"] == [{"task": "work it out", "done": True}, {"task": "answer", "done": True}]
    assert [entry["progress"] for entry in made.metadata["ledger"]] == ["no progress", "new result", "tasks done: 1, 2"]
    assert all(step.parent == step.step_index - 1 for step in made.steps[1:])


def test_without_thoughts_nothing_but_actions_is_asked_for(run) -> None:
    settings = {"thoughts": False, "ends": [], "stop_after": ["echo"], "stall_after": 1}
    call = json.dumps({"tool": "calculator", "args": {"expression": "2 * 3"}})
    made = run(call, call, json.dumps({"tool": "echo", "args": {"text": "6"}}), settings=settings)
    assert ended(made) == ("stopped", "6", 3)
    system, *shown = (made.steps[0].messages[0]["content"], *(step.messages[-1]["content"] for step in made.steps))
    assert system.startswith('Reach the goal. Each turn, write one JSON object:\n{"tool": "NAME", "args": {...}}\nText')
    assert shown[0] == "Goal: What is 2 * 3?\n[turn 1/16]"
    assert shown[2].endswith("[stalled] Nothing new came of the last 1 turns. Try another way.\n[turn 3/16]")
    once = run(json.dumps({"tool": "echo", "args": {"text": "6"}}), settings={**settings, "max_turns": 1})
    assert once.steps[0].messages[-1]["content"] == "Goal: What is 2 * 3?"
    limited = run(call, settings={**settings, "max_turns": 1}, max_tool_calls=4)
    assert limited.steps[0].messages[-1]["content"].endswith("\n[turn 1/1, calls left: 4]")


def test_own_instructions_replace_the_system_prompt(run) -> None:
    made = run(turn(finish="6"), settings={"instructions": "Compute.\n{tools}\n{actions}", "ends": ["finish"]})
    first, *cards, tool, finish = made.steps[0].messages[0]["content"].splitlines()
    assert first == "Compute." and [card.partition("(")[0] for card in cards] == ["calculator", "echo"]
    assert tool.endswith('"tool": "NAME", "args": {...}}')
    assert finish == '{"thought": "...", "done": [2], "finish": "the answer"}'


def test_an_answer_with_open_tasks_is_questioned_once(run) -> None:
    made = run(turn(add=["look"]), turn(finish="6"), turn(finish="7"))
    assert ended(made) == ("finished", "7", 3)
    assert "[critique] These tasks are open: look." in made.steps[2].messages[-1]["content"]


def test_a_critic_sends_an_answer_back_with_its_reasons(run) -> None:
    made = run(calculate("2*3"), turn(finish="5"), turn(finish="6"), critic=["No, it is 6.", "yes"])
    assert ended(made) == ("finished", "6", 3)
    assert [step.role for step in made.steps] == ["policy", "policy", "critic", "policy"]
    assert "\n6\n</result>\nAnswer: 5" in made.steps[2].messages[-1]["content"]
    assert "[critique] No, it is 6." in made.steps[3].messages[-1]["content"]
    assert [step.metadata["verdict"] for step in made.steps if step.role == "critic"] == [False]


def test_two_actions_in_turn_forever_end_as_stalled(run) -> None:
    pair = (calculate("1+1"), calculate("2+2"))
    made = run(*itertools.chain(*[pair] * 4), turn(finish="2"), settings={"max_turns": 50})
    # Two turns are new, three repeat them: another way is asked for, and three turns later it is over.
    assert ended(made) == ("stalled", "2", 8)
    assert "[stalled] Nothing new came of the last 3 turns." in made.steps[5].messages[-1]["content"]
    assert "[last turn: no progress]" in made.steps[-1].messages[-1]["content"]
    assert made.metadata["restarts"] == 1


@pytest.mark.parametrize(
    "says", [turn(add=["more", "and more"]), "nonsense", turn(tool="no_such_tool"), turn(done=[99])]
)
def test_what_changes_nothing_stalls(run, says) -> None:
    made = run(says, settings={"stall_after": 2, "max_restarts": 0})
    assert ended(made)[0] == "stalled" and len(made.steps) == 3


def test_the_turns_are_bounded_and_the_last_one_is_an_answer(run) -> None:
    numbers = [calculate(f"{number}+1") for number in range(3)]
    made = run(*numbers, turn(finish="3"), settings={"max_turns": 3})
    assert ended(made) == ("turns", "3", 3)
    made = run(*[calculate(f"{number}+1") for number in range(5)], settings={"max_turns": 3})
    assert ended(made) == ("turns", None, 3)
    assert made.tool_calls[-1].error_kind == "unparsed"


@pytest.mark.parametrize(
    ("budget", "limit"),
    [({"tokens": 1}, "tokens"), ({"model_calls": 1}, "model_calls"), ({"tool_calls": 1}, "tool_calls")],
)
def test_budgets_end_the_attempt_under_their_name(run, budget, limit) -> None:
    made = run(calculate("2*3"), turn(finish="6"), settings={"budget": budget})
    assert (*ended(made), made.metadata["limit"]) == ("budget", "6", 1, limit)


def test_the_budget_of_tool_calls_of_the_config_holds(run) -> None:
    made = run(calculate("2*3"), calculate("2*4"), turn(finish="6"), max_tool_calls=1)
    assert (*ended(made), made.metadata["limit"]) == ("budget", "6", 2, "tool_calls")


def test_seconds_are_a_budget_too(make_worker, attempt, clock) -> None:
    def says(request: Any) -> str:
        clock.advance(3)  # the agent thinks for three seconds
        return calculate("2*3") if len(request.messages) < 6 else turn(finish="6")

    worker = make_worker(
        says, "autonomous", roles=NO_CRITIC, tools=("calculator",), settings={"budget": {"seconds": 5}}
    )
    made = asyncio.run(worker.run(attempt()))
    assert (*ended(made), made.metadata["limit"]) == ("budget", "6", 2, "seconds")


def test_an_agent_may_give_up(run) -> None:
    made = run(turn(give_up="no way"))
    assert (*ended(made), made.metadata["limit"]) == ("gave_up", None, 1, "no way")


def test_a_tool_can_end_the_attempt(run) -> None:
    made = run(turn(tool="echo", args={"text": "alert!"}), settings={"stop_after": ["echo"]})
    assert ended(made) == ("stopped", "alert!", 1)
    with pytest.raises(ConfigError, match="did you mean 'echo'"):
        run(turn(finish="6"), settings={"stop_after": ["ecko"]})


def test_old_messages_are_summarised(run) -> None:
    numbers = [calculate(f"{number}+1000000", add=["look at it again " * 5]) for number in range(4)]
    made = run(numbers[0], numbers[1], "A number was found.", turn(finish="6"), settings={"context_tokens": 500})
    assert any("compaction" in step.metadata for step in made.steps)


def test_it_has_two_names() -> None:
    assert find_flow("autogpt") is find_flow("autonomous")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hm", "write one JSON object"),
        (turn(), "call a tool, change the tasks, finish, or give up"),
        (turn(tool="x", finish="y"), "only one of tool, finish and give_up"),
        (turn(tols="x"), "tols: Extra inputs"),
        (turn(add=["x"] * 9), "add: List should have at most 8"),
    ],
)
def test_what_is_wrong_with_a_turn_is_said(text, problem) -> None:
    with pytest.raises(UnreadableTurn, match=problem):
        read_turn(text)


def test_the_schema_accepts_turns_only() -> None:
    tools = load_tools(("calculator", "search"))
    validator = Draft202012Validator(turn_schema(tools, True))
    for text in (calculate("1", done=[1]), turn(finish="x"), turn(give_up="y", add=["z"])):
        assert validator.is_valid(json.loads(text)) and read_turn(text)
    for text in (turn(), turn(tool="other", args={}), turn(finish="x", give_up="y")):
        assert not validator.is_valid(json.loads(text))
    assert not Draft202012Validator(turn_schema(tools, False)).is_valid(json.loads(calculate("1")))


def test_the_ledger_counts_a_result_once() -> None:
    ledger, call = Ledger(), ToolCall(tool="t", arguments={}, ok=True, result="x")
    assert [ledger.is_new(call), ledger.is_new(call)] == [True, False]
    assert not ledger.is_new(ToolCall(tool="t", arguments={}, ok=False, result="y"))
