"""Handoffs are exclusive, show the next member what the context policy says, and cannot go on forever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from midstream.core.types import Status, Trajectory

MEMBERS = {"desk": {"instructions": "You greet."}, "billing": {"instructions": "You bill.", "tools": ["calculator"]}}


def hand(to: str, text: str) -> str:
    return json.dumps({"handoff": to, "message": text})


def answer(text: str) -> str:
    return json.dumps({"answer": text})


CALL = '{"tool": "calculator", "args": {"expression": "6*7"}}'


@pytest.fixture
def serve(make_worker, by_role, attempt) -> Callable[..., Trajectory]:
    """A trajectory in which the members reply so."""

    def run(settings: dict[str, Any] | None = None, **replies: Any) -> Trajectory:
        worker = make_worker(
            by_role(**replies), "handoff", tools=("calculator",), settings={"members": MEMBERS, **(settings or {})}
        )
        return asyncio.run(worker.run(attempt("What do I owe?")))

    return run


def test_the_next_member_goes_on_and_answers(serve) -> None:
    made = serve(desk=hand("billing", "a bill"), billing=[CALL, answer("42")])
    assert (made.answer, made.metadata["outcome"]) == ("42", "answered")
    assert made.metadata["handoffs"] == [{"from": "desk", "to": "billing", "message": "a bill"}]
    assert [step.role for step in made.steps] == ["desk", "billing", "billing"]
    assert made.steps[1].messages[-1]["content"] == "Task: What do I owe?\ndesk handed over to you: a bill"
    assert [call.step_index for call in made.tool_calls] == [1]


@pytest.mark.parametrize("reply", [f"{CALL} {hand('desk', 'x')}", f"[{hand('desk', 'x')}, {CALL}]"])
def test_a_handoff_beside_a_tool_call_is_refused_as_a_whole(serve, reply: str) -> None:
    made = serve({"start": "billing"}, billing=[reply, answer("later")])
    assert not made.tool_calls and not made.metadata["handoffs"]
    shown = made.steps[1].messages[-1]["content"]
    assert shown.startswith("Error: 'handoff' must be the only action of a reply, and this one has 2")
    assert made.steps[0].metadata["parsed"] is False and made.answer == "later"


@pytest.mark.parametrize(
    ("context", "seen"),
    [
        ({"keep": "all"}, "The conversation so far:\n[desk] one\n[billing] two\n[desk] three\n"),
        ({"keep": "last", "last": 1}, "The conversation so far:\n[desk] three\n"),
        ({"keep": "none"}, ""),
        ({"keep": "summary"}, "Summary of the conversation so far:\nin short\n"),
    ],
)
def test_the_context_policy_decides_what_the_next_member_sees(serve, context, seen: str) -> None:
    summary = ["in short"] if context["keep"] == "summary" else []
    desk = [hand("billing", "one"), hand("billing", "three"), *summary, answer("done")]
    if summary:
        # Every handoff after the first is summarised by the one who hands over.
        desk = [hand("billing", "one"), hand("billing", "three"), "in short", answer("done")]
    billing = [hand("desk", "two"), *summary, hand("desk", "four"), *summary]
    made = serve({"context": context}, desk=desk, billing=billing)
    last = next(step for step in reversed(made.steps) if step.role == "desk")
    assert last.messages[-1]["content"] == f"Task: What do I owe?\n{seen}billing handed over to you: four"
    summaries = [step for step in made.steps if "handoff_summary" in step.metadata]
    assert len(summaries) == (3 if summary else 0) and all(step.trainable for step in summaries)


def test_two_that_hand_back_and_forth_end_in_a_named_state(serve) -> None:
    made = serve(desk=hand("billing", "yours"), billing=hand("desk", "no, yours"))
    assert made.status is Status.COMPLETED and made.answer is None
    assert made.metadata["outcome"] == "ping_pong" and len(made.metadata["handoffs"]) == 3


def test_after_the_last_handoff_only_an_answer_is_left(serve) -> None:
    made = serve({"max_handoffs": 1}, desk=hand("billing", "yours"), billing=[hand("desk", "no"), answer("all right")])
    assert "no handoff is left: write the answer" in made.steps[2].messages[-1]["content"]
    assert made.answer == "all right"
    stuck = serve({"max_handoffs": 1, "max_errors": 0}, desk=hand("billing", "yours"), billing=hand("desk", "no"))
    assert stuck.metadata["outcome"] == "unreadable" and stuck.answer is None


def test_who_may_receive_is_configured(serve) -> None:
    made = serve({"handoffs": {"desk": []}}, desk=[hand("billing", "yours"), "I do it myself"])
    assert "cannot hand over to 'billing'" in made.steps[1].messages[-1]["content"]
    assert made.answer == "I do it myself"  # plain text is an answer


def test_too_many_tool_calls_in_one_turn_go_back_to_the_member(serve) -> None:
    made = serve({"start": "billing"}, billing=[*[CALL] * 5, answer("42")])
    assert len(made.tool_calls) == 4 and made.answer == "42"
    assert "asked for more than 4 tool calls" in made.steps[-1].messages[-1]["content"]
