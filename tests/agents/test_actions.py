"""Planner text is parsed to an action, or to a message with the expected format."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.agents.agentflow.actions import NextStep, UnreadableAction, read_action, write_action
from midstream.tools import Toolbox, load_tools, tool


@tool
def convert(amount: float, rate: float) -> float:
    """Convert an amount."""
    return amount * rate


TOOLBOX = Toolbox([*load_tools(["calculator", "echo"]), convert])
ONE_ARGUMENT = {"calculator": "expression", "echo": "text"}

lines = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=30).map(str.strip)
values = st.one_of(st.integers(-1000, 1000), st.booleans(), st.none(), st.text(max_size=10))


@st.composite
def actions(draw, name: str | None = None) -> NextStep:
    name = name or draw(st.sampled_from(["calculator", "echo", "convert", "none", "no_such-tool"]))
    if name in ONE_ARGUMENT:
        arguments = {ONE_ARGUMENT[name]: draw(st.text(max_size=30))}
    elif name == "none":
        arguments = {}
    else:
        arguments = draw(st.dictionaries(st.sampled_from(["amount", "rate", "x"]), values, max_size=3))
        if len(arguments) == 1 and isinstance(next(iter(arguments.values())), str):
            # A single text argument is written without its name, which only a tool with one parameter restores.
            arguments["y"] = 1
    fields = {field: draw(lines) for field in ("justification", "context", "sub_goal")}
    return NextStep(tool=name, arguments=arguments, **fields)


@settings(max_examples=300, deadline=None)
@given(actions())
def test_written_actions_are_read_back_in_both_notations(action: NextStep) -> None:
    for notation in ("json", "compact"):
        assert read_action(write_action(action, notation), notation, TOOLBOX) == action, notation


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text("{}\"': calculator\n", max_size=60))
def test_any_text_parses_to_an_action_or_a_message(text: str) -> None:
    for notation in ("json", "compact"):
        try:
            action = read_action(text, notation, TOOLBOX)
        except UnreadableAction as error:
            assert 0 < len(str(error)) < 300
        else:
            assert isinstance(action, NextStep)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("calculator: 12 * 3", NextStep(tool="calculator", arguments={"expression": "12 * 3"})),
        ("echo: hi", NextStep(tool="echo", arguments={"text": "hi"})),
        (" none \n", NextStep(tool="none")),
        ("echo:", NextStep(tool="echo")),
        ("echo: a\nb", NextStep(tool="echo", arguments={"text": "a\nb"})),
        ('convert: {"amount": 2, "rate": 3.5}', NextStep(tool="convert", arguments={"amount": 2, "rate": 3.5})),
        ("nothing: x", NextStep(tool="nothing", arguments={"input": "x"})),
        (
            "justification: we need it\nsub_goal: multiply\ncalculator: 2*3",
            NextStep(
                justification="we need it", sub_goal="multiply", tool="calculator", arguments={"expression": "2*3"}
            ),
        ),
    ],
)
def test_the_compact_notation(text: str, expected: NextStep) -> None:
    assert read_action(text, "compact", TOOLBOX) == expected


def test_json_is_found_within_surrounding_text() -> None:
    text = 'Sure!\n```json\n{"tool": "echo", "arguments": {"text": "{}"}}\n```'
    assert read_action(text, "json", TOOLBOX) == NextStep(tool="echo", arguments={"text": "{}"})


@pytest.mark.parametrize(
    ("notation", "text", "message"),
    [
        ("compact", "I would multiply", "write `TOOL: INPUT`"),
        ("compact", "", "write `TOOL: INPUT`"),
        ("compact", "two words", "write `TOOL: INPUT`"),
        ("compact", "7up: x", "write `TOOL: INPUT`"),
        ("compact", 'convert: {"amount": 2,', "the arguments of convert are not a JSON object"),
        ("compact", 'convert: {"a":' + "1" * 5000 + "}", "the arguments of convert are not a JSON object"),
        ("compact", "convert: " + '{"a":' * 50_000, "the arguments of convert are not a JSON object"),
        ("compact", "convert: 2 by 3", "give the arguments of convert as a JSON object with amount, rate"),
        ("json", "nothing here", "write one JSON object with tool and arguments"),
        ("json", "} {", "write one JSON object with tool and arguments"),
        ("json", "{tool}", "the JSON object is wrong at its start"),
        ("json", "{}", "the JSON object is wrong at tool: Field required"),
        ("json", '{"tool": "echo", "argments": {}}', "wrong at argments: did you mean 'arguments'?"),
        ("json", '{"tool": "echo", "sub_goal": 3}', "wrong at sub_goal: Input should be a valid string"),
        ("json", '{"tool": "echo", "arguments": "hi"}', "wrong at arguments: Input should be"),
    ],
)
def test_unreadable_text_gives_a_message_with_the_expected_format(notation, text: str, message: str) -> None:
    with pytest.raises(UnreadableAction) as error:
        read_action(text, notation, TOOLBOX)
    assert message in str(error.value)


@pytest.mark.parametrize("notation", ["json", "compact"])
def test_all_missing_required_fields_are_named(notation) -> None:
    text = write_action(NextStep(tool="echo", context="known"), notation)
    with pytest.raises(UnreadableAction, match="also give justification, sub_goal"):
        read_action(text, notation, TOOLBOX, ("justification", "context", "sub_goal"))
    assert read_action(text, notation, TOOLBOX, ("context",)).context == "known"


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        ("json", '{"tool": "echo", "' + "k" * 5000 + '": 1}'),
        ("compact", "k" * 5000 + ": {1"),
        ("json", '{"tool": "echo", "sub_goal": ["' + "k" * 5000 + '"]}'),
    ],
)
def test_error_messages_have_a_bounded_length(notation, text: str) -> None:
    with pytest.raises(UnreadableAction) as error:
        read_action(text, notation, TOOLBOX)
    assert len(str(error.value)) < 300
