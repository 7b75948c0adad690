"""Replies parse the same in any chunks, and written calls are parsed back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.formats.samples import (
    ANY,
    CODER,
    DEEPSEEK,
    GEMMA,
    GLM,
    HARMONY,
    HERMES,
    HERMES_CALL,
    KIMI,
    LLAMA,
    LLAMA4,
    MISTRAL,
    QWEN3,
    QWEN3_THINKING,
    named,
)

from midstream.engines.formats import FORMATS, ChatFormat
from midstream.engines.formats.reply import joined

PIECES = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"a": "}"}}', '[{"name": "f"}]', "<tool_"],
    "llama3": ["<|python_tag|>", '{"name": "f", "parameters": {}}', ";", "\n", "{", "<|python"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "f", "{}", '[{"name": "f", "arguments": {"a": [1]}}]', "[TOOL", "[CALL_ID]"],
    "qwen3_coder": ["<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=a>", "</parameter>", "<"],
    "deepseek": [
        *(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "function",
            "f",
            "<｜tool▁sep｜>",
            "{}",
            "```json\n",
            "```",
        ),
        *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜tool"),
    ],
    "glm4": [
        *("<tool_call>", "</tool_call>", "f", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "a", "<arg"),
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    ],
    "harmony": [
        *("<|start|>", "assistant", "<|channel|>", "analysis", "commentary", "final", "<|message|>", "<|end|>"),
        *("<|call|>", "<|return|>", " to=functions.f", " to=", "<|constrain|>json", "{}", '{"a": "<|end|>"}', "<|"),
        " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
    ],
    "gemma4": [
        *("<|tool_call>", "<tool_call|>", "call:f", '<|"|>', "a:", "1", ",", "]", "<|channel>thought\n", "<channel|>"),
        *('<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>', "<|tool_response>", "<|"),
    ],
    "kimi_k2": [
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
        *("<|tool_call_argument_begin|>", "functions.f:0", "f", "{}", "<|tool"),
    ],
    "llama4": ["<|python_start|>", "<|python_end|>", "[f(", "f(", "a=", "1", "'x'", ")", "]", ", ", "[", "[f(a='x')]"],
    "plain": [],
}


ANYWHERE = ["<think>", "</think>", "</thi", " ", "\n", '"', "\\", "{", "}", "[", "é🙂", "\ud83d", "so"]


@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=150, deadline=None)
@given(data=st.data(), template=st.sampled_from(["", QWEN3, QWEN3_THINKING]))
def test_a_reply_parses_the_same_in_any_chunks(name: str, data: st.DataObject, template: str) -> None:
    family = named(name, template)
    part = st.one_of(st.sampled_from([*PIECES[name], *ANYWHERE]), st.text(max_size=4))
    text = "".join(data.draw(st.lists(part, max_size=14)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parser, deltas = family.parser(ANY), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        deltas += parser.feed(text[begin:end])
    deltas += parser.close()
    places = [delta.call for delta in deltas if delta.call is not None]
    assert places == sorted(places)
    whole = family.read(text, ANY)
    assert joined(deltas) == whole
    for call in whole.tool_calls:
        assert call.name and isinstance(json.loads(call.arguments), dict)
    if not whole.tool_calls and family.facts.thinks == "no" and name not in ("harmony", "kimi_k2"):
        assert whole.content == text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


_NAMES = st.text("abcxyz_", min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *(("hermes", ""), ("llama3", ""), ("mistral", ""), ("mistral", "[ARGS]"), ("deepseek", "```json")),
        *(("deepseek", ""), ("kimi_k2", ""), ("harmony", ""), ("gemma4", ""), ("llama4", "")),
    ],
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_written_calls_are_parsed_back(name: str, source: str, data: st.DataObject) -> None:
    family = named(name, source)
    keys = st.text(max_size=5) if name not in ("gemma4", "llama4") else _NAMES
    values = _JSON
    if name == "gemma4":  # its keys stand without quotes, in objects within the arguments too
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
            max_leaves=8,
        )
    arguments = data.draw(st.dictionaries(keys, values, max_size=4))
    (call,) = family.read(family.write("f", json.dumps(arguments)), ANY).tool_calls
    assert (call.name, json.loads(call.arguments)) == ("f", arguments)


@pytest.mark.parametrize("name", ["qwen3_coder", "glm4"])
@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(_NAMES, _JSON.map(lambda value: {"of": value}) | st.text(max_size=9), max_size=4))
def test_tagged_text_is_parsed_by_its_declared_type(name: str, arguments: dict[str, Any]) -> None:
    properties = {key: {"type": "object" if isinstance(value, dict) else "string"} for key, value in arguments.items()}
    parameters = {"type": "object", "properties": properties}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    family = named(name)
    (call,) = family.read(family.write("f", json.dumps(arguments)), tools).tool_calls
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize(
    "family",
    [HERMES, LLAMA, MISTRAL, CODER, DEEPSEEK, GLM, HARMONY, GEMMA, KIMI, LLAMA4],
    ids=lambda family: family.name,
)
def test_calls_and_partial_calls_parse_the_same_by_characters(family: ChatFormat) -> None:
    one = family.write("f", '{"a": "x"}')
    for text in (one, f"So.\n{one}\n{one} end", one[:-3], one[: len(one) // 2], f"{one[:-9]} {one}", f"{one}; {one}"):
        parser = family.parser(ANY)
        deltas = [delta for letter in text for delta in parser.feed(letter)] + parser.close()
        assert joined(deltas) == family.read(text, ANY)


def test_content_is_streamed_as_soon_as_it_cannot_be_a_marker() -> None:
    def received_tokens(*pieces: str) -> list[str]:
        parser = HERMES.parser(ANY)
        return ["".join(delta.content for delta in parser.feed(piece)) for piece in pieces]

    assert received_tokens("So", "me", " text", " <", "tool", "box>", " <tool_call>", " x") == [
        *("So", "me", " text", "", "", " <toolbox>", "", " <tool_call> x"),
    ]
    parser = HERMES.parser(ANY)
    assert [delta.name for delta in parser.feed(HERMES_CALL)] == ["get_weather"]


def test_a_reply_of_only_opening_markers_is_parsed_quickly() -> None:
    """Parsing each opener to the end of the reply would take quadratic time."""
    for family, opener in (
        (HERMES, '<tool_call>{"a'),
        (LLAMA, "{\n"),
        (LLAMA, '{"a": [\n'),
        (DEEPSEEK, PIECES["deepseek"][1]),
        (GLM, "<tool_call>f<arg_key>a"),
        (CODER, "<function=f><parameter=a>"),
        (GEMMA, '<|tool_call>call:f{a:<|"|>'),
        (KIMI, "<|tool_calls_section_begin|> "),
        (LLAMA4, '[f(a="\n'),
        (HARMONY, "<|channel|>"),
    ):
        text = opener * 3000
        reply = family.read(text, ANY)
        assert (reply.content.replace("\n", ""), reply.tool_calls) == (text.replace("\n", ""), ())
