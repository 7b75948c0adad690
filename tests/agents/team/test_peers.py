"""Peers: who may write to whom, who reads next, and how what never ends by itself ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from midstream.agents.team.peers import PeersSettings
from midstream.agents.team.topology import neighbours
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.core.types import Status, Trajectory

TRIO = {"a": {"instructions": "You look things up."}, "b": {}, "c": {}}


def send(to: str | list[str], text: str) -> str:
    return json.dumps({"to": to, "message": text})


def answer(text: str) -> str:
    return json.dumps({"answer": text})


@pytest.fixture
def talk(make_worker, by_role, attempt) -> Callable[..., Trajectory]:
    """A trajectory in which the members reply so."""

    def run(members: Mapping[str, Any] = TRIO, replies: Mapping[str, Any] | None = None, **settings: Any) -> Trajectory:
        worker = make_worker(by_role(**(replies or {})), "peers", settings={"members": members, **settings})
        return asyncio.run(worker.run(attempt("Write about tides.")))

    return run


def order(made: Trajectory) -> list[str]:
    return [step.role for step in made.steps]


def test_a_ring_passes_text_on_until_one_answers(talk) -> None:
    made = talk(replies={"a": "facts", "b": "summary", "c": answer("Tides, proofread.")})
    assert (made.answer, made.metadata["outcome"]) == ("Tides, proofread.", "answered")
    assert order(made) == ["a", "b", "c"]
    assert [(one["giver"], one["to"], one["text"]) for one in made.metadata["messages"]] == [
        ("a", "b", "facts"),
        ("b", "c", "summary"),
    ]
    assert made.steps[0].messages[-1]["content"] == "Task: Write about tides."
    assert made.steps[1].messages[-1]["content"] == "[from a] facts"
    # Each has its own view: the last one never sees the first one's text.
    assert "facts" not in str(made.steps[2].messages)


def test_a_message_to_nobody_is_no_answer(talk) -> None:
    made = talk(replies={"a": send([], "I am done.")}, topology="full", answer_by=["c"], max_errors=1)
    assert (made.answer, made.metadata["outcome"]) == (None, "unreadable")
    assert "names nobody" in made.steps[1].messages[-1]["content"]


def test_a_ring_goes_round_until_the_work_is_done(talk) -> None:
    made = talk(replies={"a": ["draft", "better draft"], "b": "edited", "c": ["again, please", answer("good")]})
    assert order(made) == ["a", "b", "c", "a", "b", "c"] and made.answer == "good"
    assert made.steps[3].messages[-1]["content"] == "[from c] again, please"
    assert made.steps[3].parent == 0  # it continues the conversation of its role


def test_the_last_message_can_be_the_answer(talk) -> None:
    made = talk(replies={"a": "1", "b": "2", "c": "3"}, answer="last_message", max_hops=3)
    assert made.answer == "3" and made.metadata["outcome"] == "answered" and order(made) == ["a", "b", "c"]


def test_messages_of_a_star_go_through_the_hub(talk) -> None:
    made = talk(
        replies={
            "hub": [send(["a", "b"], "Who knows?"), "", send("a", "Thanks"), answer("a knows")],
            "a": ["I do", "Welcome"],
            "b": "Not me",
        },
        members={"a": {}, "hub": {}, "b": {}},
        topology="star",
        hub="hub",
        turn="rounds",
    )
    assert made.answer == "a knows"
    # Both answers of the round are read together; an empty reply goes back once.
    assert order(made) == ["hub", "b", "a", "hub", "hub", "a", "hub"]
    assert made.steps[3].messages[-1]["content"] == "[from b] Not me\n[from a] I do"
    assert made.steps[4].messages[-1]["content"].startswith("Error: write")


@pytest.mark.parametrize(
    ("turn", "expected"),
    [("mailbox", ["a", "b", "c", "a", "b"]), ("round_robin", ["a", "b", "c", "a", "b"])],
)
def test_the_turn_rule_says_who_reads_next(talk, turn: str, expected: list[str]) -> None:
    replies = {
        "a": [send(["b", "c"], "hi"), send("b", "so?")],
        "b": [send("a", "yes"), answer("ok")],
        "c": send("a", "no"),
    }
    made = talk(replies=replies, topology="full", turn=turn)
    assert order(made) == expected and made.answer == "ok"
    assert made.steps[3].messages[-1]["content"] == "[from b] yes\n[from c] no"


@pytest.mark.parametrize(
    ("replies", "settings", "outcome", "hops"),
    [
        # Two members that thank each other forever.
        ({"a": "Thanks!", "b": "Thank you!"}, {"members": {"a": {}, "b": {}}}, "no_progress", 4),
        ({"a": "Thanks!", "b": "Thank you!"}, {"members": {"a": {}, "b": {}}, "stall_after": 4}, "no_progress", 6),
        ({"a": list("123456"), "b": list("123456")}, {"members": {"a": {}, "b": {}}, "max_hops": 5}, "max_hops", 5),
        ({"a": "", "b": ""}, {"max_errors": 1}, "unreadable", 1),
        ({"a": "hi", "b": "hello"}, {"topology": "edges", "edges": [["a", "b"]]}, "unreadable", 2),
    ],
)
def test_what_never_ends_by_itself_ends_in_a_named_state(talk, replies, settings, outcome: str, hops: int) -> None:
    made = talk(replies=replies, **settings)
    assert made.status is Status.COMPLETED and made.answer is None
    assert (made.metadata["outcome"], made.turns) == (outcome, hops)


def test_a_message_to_a_stranger_goes_back(talk) -> None:
    made = talk(replies={"a": [send("c", "psst"), "all right"], "b": answer("ok")}, answer_by=["b"])
    assert made.steps[1].messages[-1]["content"] == "Error: 'a' cannot write to 'c'; it can to: b"
    assert [step.metadata["parsed"] for step in made.steps] == [False, True, True]


def test_only_those_who_may_answer_do(talk) -> None:
    made = talk(replies={"a": answer("42"), "b": answer("43")}, answer_by=["b"])
    # To a member that may not answer, this is a message like any other.
    assert made.answer == "43" and made.steps[1].messages[-1]["content"] == f"[from a] {answer('42')}"


def test_a_message_beside_an_answer_is_refused_as_a_whole(talk) -> None:
    both = send("b", "hi") + answer("42")
    made = talk(replies={"a": [both, "hi"], "b": answer("43")})
    assert "must be the only action of a reply" in made.steps[1].messages[-1]["content"] and made.answer == "43"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"members": {"a": {}}}, "peers are at least two members"),
        ({"members": {}}, "members: Dictionary should have at least 1 item"),
        ({"members": {"policy": {}, "b": {}}}, "a member cannot be called 'policy'"),
        ({"members": {"a b": {}, "b": {}}}, "the name of a role is letters"),
        ({"start": "d"}, "start names 'd', which is no member"),
        ({"edges": [["a", "d"]], "topology": "edges"}, "'d', which is no member"),
        ({"edges": [["a", "b"]]}, "only there"),
        ({"topology": "edges"}, "give `edges`"),
        ({"hub": "a"}, "only the topology 'star' has a hub"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(PeersSettings, {"members": TRIO, **settings})
    assert problem in str(raised.value)


def test_the_edges_of_each_topology() -> None:
    names = ["a", "b", "c"]
    assert neighbours("ring", names, "a", ()) == {"a": ("b",), "b": ("c",), "c": ("a",)}
    assert neighbours("star", names, "b", ()) == {"a": ("b",), "b": ("a", "c"), "c": ("b",)}
    assert neighbours("full", names, "a", ()) == {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")}
    assert neighbours("edges", names, "a", [("a", "c"), ("c", "a")]) == {"a": ("c",), "b": (), "c": ("a",)}
