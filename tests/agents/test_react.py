"""The `react` flow: typed actions, caps, observations as data, answers by schema, compaction, memory, tool status."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from midstream.agents.react.actions import UnreadableAction, action_schema, read_action
from midstream.core.errors import ConfigError
from midstream.core.types import Status, Trajectory
from midstream.tools import load_tools, tool

ALL = ("reasoning", "search", "call_api", "memory_retrieve", "plan", "answer")


def act(name: str, **parameters: Any) -> str:
    return json.dumps({"action": name, **parameters})


@pytest.fixture
def react(make_worker, by_role, attempt):
    """A trajectory in which the policy says these things."""

    def run(*says: str, question: str = "What is the capital of Peru?", **flow: Any) -> Trajectory:
        flow.setdefault("tools", ("calculator", "search"))
        worker = make_worker(by_role(policy=list(says)), "react", **flow)
        return asyncio.run(worker.run(attempt(question)))

    return run


def test_think_search_reason_act_answer(react) -> None:
    made = react(
        act("plan", steps=["find the capital", "answer"]),
        act("search", query="capital of Peru"),
        "Let me see. " + act("reasoning", thought="It says Lima."),
        act("call_api", tool="calculator", args={"expression": "6*7"}),
        act("answer", answer="Lima"),
    )
    assert (made.status, made.answer, made.turns, len(made.steps)) == (Status.COMPLETED, "Lima", 5, 5)
    assert [(call.tool, call.ok, call.result) for call in made.tool_calls] == [
        ("search", True, "The capital of Peru is Lima."),
        ("calculator", True, "42"),
    ]
    assert made.metadata["actions"] == {"plan": 1, "search": 1, "reasoning": 1, "call_api": 1, "answer": 1}
    shown = [step.messages[-1]["content"] for step in made.steps]
    assert "[turn 1/8] actions: reasoning, search, call_api, plan, answer" in shown[0]
    assert '<result tool="search">\nThe capital of Peru is Lima.\n</result>' in shown[2]
    assert "plan: find the capital; answer" in shown[1]
    assert all(step.parent == step.step_index - 1 for step in made.steps[1:])


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
def test_definitions_of_the_answer_hold_in_the_schema_of_actions(keyword):
    pair = {"type": "array", "items": {"$ref": f"#/{keyword}/Name"}}
    schema = {
        "type": "object",
        "properties": {"pair": pair},
        "required": ["pair"],
        keyword: {"Name": {"type": "string"}},
    }
    given = copy.deepcopy(schema)
    actions = action_schema(["answer", "call_api"], load_tools(["echo"]), schema)
    valid = Draft202012Validator(actions).is_valid
    assert valid({"action": "answer", "answer": {"pair": ["a", "b"]}})
    assert not valid({"action": "answer", "answer": {"pair": [1]}})
    assert schema == given


def test_each_action_is_logged_with_its_confidence(react) -> None:
    made = react(act("search", query="capital of Peru"), act("answer", answer="Lima"))
    logged = [step.metadata for step in made.steps]
    assert [one["action"]["action"] for one in logged] == ["search", "answer"]
    assert all(one["confidence"] == pytest.approx(0.6065, abs=1e-3) for one in logged)


def test_caps_and_the_last_turn(react) -> None:
    search = act("search", query="capital of Peru")
    made = react(
        search, search, act("reasoning", thought="..."), search, settings={"max_actions": 4, "caps": {"search": 1}}
    )
    assert [call.error_kind for call in made.tool_calls] == ["", "unparsed", "unparsed"]
    assert made.answer is None and made.turns == 4
    shown = [step.messages[-1]["content"] for step in made.steps]
    assert "no action 'search' is left" in shown[2]
    assert "[turn 4/4] actions: answer" in shown[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("I think it is Lima", "write one JSON object with an action"),
        ("{{{", "write one JSON object with an action"),
        (act("serch", query="x"), "there is no action 'serch'; did you mean 'search'?"),
        (act("search"), 'search: query: Field required; write {"action": "search", "query": "..."}'),
        (act("search", query=3), "search: query: Input should be a valid string"),
        (act("search", query="x", limit=3), "search: limit: Extra inputs are not permitted"),
        (act("memory_retrieve", query="x"), "no action 'memory_retrieve' is left"),
        ("[" * 100_000 + "{}", "there is no action 'None'"),
        ("{" + '"a":{' * 100_000 + "}" * 100_000, "write one JSON object"),
    ],
)
def test_what_is_no_action_says_what_to_write(text, problem) -> None:
    with pytest.raises(UnreadableAction) as raised:
        read_action(text, ["reasoning", "search", "answer"])
    assert problem in str(raised.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_action_of_the_schema_can_be_read(data) -> None:
    tools = load_tools(["calculator", "multiply"])
    schema = action_schema(ALL, tools)
    texts, number = st.text(max_size=9), st.integers(-5, 5)
    written = data.draw(
        st.one_of(
            st.builds(lambda a: {"action": "reasoning", "thought": a}, texts),
            st.builds(lambda a: {"action": "search", "query": a}, texts),
            st.builds(lambda a: {"action": "memory_retrieve", "key": a}, texts),
            st.builds(lambda a: {"action": "plan", "steps": a}, st.lists(texts, max_size=3)),
            st.builds(lambda a: {"action": "answer", "answer": a}, texts),
            st.builds(
                lambda a, b: {"action": "call_api", "tool": "multiply", "args": {"a": a, "b": b}}, number, number
            ),
        )
    )
    Draft202012Validator(schema).validate(written)
    assert read_action(json.dumps(written), ALL).model_dump(exclude_defaults=True).items() <= written.items()


def test_the_schema_holds_only_what_is_left() -> None:
    valid = Draft202012Validator(action_schema(["answer"], [], {"type": "integer"})).is_valid
    assert valid({"action": "answer", "answer": 3})
    assert not valid({"action": "answer", "answer": "3"}) and not valid({"action": "search", "query": "a"})


def test_the_answer_must_have_its_schema(react) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    made = react(
        act("answer", answer="Lima"), act("answer", answer={"capital": "Lima"}), settings={"answer_schema": schema}
    )
    assert json.loads(made.answer or "") == {"capital": "Lima"}
    assert "'Lima' is not of type 'object'" in made.steps[1].messages[-1]["content"]


def test_a_checked_answer_counts_the_second_time(react) -> None:
    made = react(act("answer", answer="Lma"), act("answer", answer="Lima"), settings={"self_critique": True})
    assert made.answer == "Lima" and len(made.steps) == 2
    assert made.steps[1].messages[-1]["content"].startswith("[check]")


def test_compaction_is_a_step_of_the_policy_like_any_other(react) -> None:
    @tool
    def unused() -> str:
        """Nothing."""
        return ""

    say = act("reasoning", thought="so far so good " * 12)
    made = react(
        say, say, say, say, "Nothing was found.", act("answer", answer="?"), say, settings={"context_tokens": 400}
    )
    summaries = [step for step in made.steps if "compaction" in step.metadata]
    assert made.metadata["compactions"] == len(summaries) >= 1
    assert all(step.trainable and step.response_ids for step in summaries)
    place = summaries[0].step_index
    after = made.steps[place + 1].messages
    assert after[0]["role"] == "system" and after[1]["content"].startswith("Summary of the conversation so far:")
    assert made.steps[place + 1].branch_reason == "edited_history"


FOUND = ["The price of tea is three. " * 6, *["Ships sail on the tide. " * 6] * 5]


@tool
def page(number: int) -> str:
    """Reads a page."""
    return FOUND[number]


def prompts(made: Trajectory) -> list[list[str]]:
    return [[message["content"] for message in step.messages] for step in made.steps]


def read_pages(react, **settings: Any) -> Trajectory:
    pages = [act("call_api", tool="page", args={"number": number}) for number in range(len(FOUND))]
    replies = [*pages[:3], "hm", *pages[3:], act("answer", answer="3")]
    return react(
        *replies,
        question="What is the price of tea?",
        tools=(f"{__name__}:page",),
        settings={"max_actions": 9, **settings},
    )


def test_a_roomy_memory_changes_no_prompt(react) -> None:
    plain, roomy = read_pages(react), read_pages(react, memory={"tokens": 100_000})
    assert [step.prompt_ids for step in plain.steps] == [step.prompt_ids for step in roomy.steps]
    assert "recalled" not in plain.metadata and roomy.metadata["recalled"] == 0


def test_a_full_memory_keeps_what_is_relevant_and_recent(react, tiny_tokenizer) -> None:
    def tokens(made: Trajectory) -> list[int]:
        return [sum(len(tiny_tokenizer.encode(text)) for text in prompt) for prompt in prompts(made)]

    plain = read_pages(react)
    sizes = tokens(plain)
    room = sizes[3] - 40  # for two records of pages
    made = read_pages(react, memory={"tokens": room})
    assert made.answer == "3" and made.metadata["recalled"] == len([size for size in sizes if size > room])
    assert prompts(made)[:3] == prompts(plain)[:3]
    whole, last = plain.steps[-1].messages, made.steps[-1].messages
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user"]
    assert (last[0], *last[2:]) == (whole[0], *whole[-2:])
    start, _, tagged = last[1]["content"].partition(
        "\nYour earlier actions; those left out were older or less relevant:\n"
    )
    assert start == "Question: What is the price of tea?"
    records = tagged.removeprefix('<result tool="memory">\n').removesuffix("\n</result>").split("\n")
    assert records[0] == f'1. page({{"number": 0}}) -> {FOUND[0]}'
    kept = [int(record.partition(".")[0]) for record in records]
    assert kept == [1, 4, 6]  # the relevant one, a short one, the latest one
    assert all(size <= room for size in tokens(made))
    assert {step.branch_reason for step in made.steps[:3]} == {""} and made.steps[-1].branch_reason == "edited_history"


def test_the_latest_of_the_earlier_actions_is_shown_in_any_budget(react) -> None:
    made = read_pages(react, memory={"tokens": 256})
    kept = prompts(made)[-1][1]
    assert made.answer == "3" and kept.count(". page(") == 1
    assert '<result tool="memory">\n6. page({"number": 4}) -> Ships' in kept


def test_a_plan_a_thought_and_a_refused_answer_are_recalled(react) -> None:
    replies = (
        act("plan", steps=["look", "say"]),
        act("reasoning", thought="It may be cheap."),
        act("answer", answer="2"),
        act("reasoning", thought="No."),
        act("answer", answer="3"),
    )
    whole = react(*replies, settings={"self_critique": True})
    tokens = len(whole.steps[-2].prompt_ids) - 10
    made = react(*replies, settings={"self_critique": True, "memory": {"tokens": tokens}})
    shown = made.steps[-1].messages[1]["content"]
    assert "1. plan: look; say\n2. It may be cheap.\n3. answer: 2; [check] Is that answer right" in shown


def test_only_one_setting_shortens_the_conversation(react) -> None:
    with pytest.raises(ConfigError, match="memory and context_tokens both shorten the conversation"):
        read_pages(react, memory={"tokens": 512}, context_tokens=512)


def test_the_state_of_the_tools_can_be_seen(react) -> None:
    made = react(
        act("call_api", tool="calculator", args={"expression": "1+1"}),
        act("answer", answer="2"),
        settings={"tool_status": True},
    )
    first, second = (step.messages[-1]["content"] for step in made.steps)
    assert "calculator: available, returns number" in first
    assert "calculator: 100% available, 100% success," in second


def test_memory_is_an_action_and_errors_are_remembered(react, tmp_path) -> None:
    memory = {"database": str(tmp_path / "memory.db"), "namespace": "peru"}
    options = {
        "tools": ("calculator", "memory_retrieve"),
        "tool_settings": {"memory_retrieve": memory},
        "settings": {"reflections": memory},
    }
    first = react(
        act("memory_retrieve", query="capital"),
        act("call_api", tool="calculator", args={"expression": "1/0"}),
        act("answer", answer="?"),
        **options,
    )
    assert [call.ok for call in first.tool_calls] == [False, False]
    second = react(act("memory_retrieve", query="division by zero"), act("answer", answer="Lima"), **options)
    lesson = '<result tool="lesson">\nWhat is the capital of Peru?; went wrong: calculator:'
    assert lesson in second.steps[0].messages[1]["content"]
    assert second.tool_calls[0].ok and "division by zero" in second.tool_calls[0].result


def test_a_failing_search_falls_back(react) -> None:
    made = react(
        act("search", query="zzzz"),
        act("answer", answer="?"),
        tools=("search", "echo"),
        tool_use={"policies": {"search": {"fallback": ["echo"]}}},
    )
    assert (made.tool_calls[0].ok, made.tool_calls[0].answered_by) == (True, "echo")
    assert '<result tool="echo">\nzzzz\n</result>' in made.steps[1].messages[-1]["content"]


@pytest.mark.parametrize(("split", "learned"), [("train", True), ("val", False), ("test", False)])
def test_lessons_are_written_in_training_only(
    make_worker, by_role, attempt, tmp_path, split: str, learned: bool
) -> None:
    memory = {"database": str(tmp_path / "memory.db"), "namespace": "peru"}
    says = [act("call_api", tool="calculator", args={"expression": "1/0"}), act("answer", answer="?")]
    for _ in range(2):
        worker = make_worker(by_role(policy=says), "react", tools=("calculator",), settings={"reflections": memory})
        asked = attempt("What is the capital of Peru?")
        made = asyncio.run(worker.run(replace(asked, task=replace(asked.task, split=split))))
    assert ("went wrong" in made.steps[0].messages[1]["content"]) is learned
