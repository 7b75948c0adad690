"""Calls and thoughts are parsed from replies, whole or in chunks; all other text stays content unchanged."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.engines.formats import FORMATS, CalledTool, ChatFormat, Reply, format_of
from midstream.engines.formats.reply import joined

TEMPLATES = Path(__file__).parent / "templates"
QWEN2_5, QWEN3, QWEN3_THINKING = (
    (TEMPLATES / f"{name}.jinja").read_text() for name in ("qwen2_5", "qwen3", "qwen3_thinking")
)
ANY = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
PARIS = CalledTool("get_weather", '{"city": "Paris"}')
KIMI_BEGIN, KIMI_ARGUMENTS = "<|tool_calls_section_begin|><|tool_call_begin|>", "<|tool_call_argument_begin|>"
KIMI_END = "<|tool_call_end|><|tool_calls_section_end|>"
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def named(name: str, template: str = "") -> ChatFormat:
    return format_of(template, {}, name)


HERMES, LLAMA, MISTRAL, CODER, DEEPSEEK = map(named, ("hermes", "llama3", "mistral", "qwen3_coder", "deepseek"))
GLM, HARMONY, GEMMA, KIMI, LLAMA4 = map(named, ("glm4", "harmony", "gemma4", "kimi_k2", "llama4"))


@pytest.mark.parametrize(
    ("family", "text", "content"),
    [
        # vLLM 0.32.0's parsers hermes, llama3_json, deepseek_v3 and deepseek_v31 read the same calls from these texts.
        (HERMES, HERMES_CALL, ""),
        (HERMES, f"Let me look.\n{HERMES_CALL}", "Let me look."),
        (HERMES, '<tool_call>{"arguments":{"city":"Paris"},"name":"get_weather"}', ""),
        (LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', ""),
        (LLAMA, '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}', ""),
        (LLAMA, 'I will call:\n{"name": "get_weather", "arguments": {"city": "Paris"}}', "I will call:"),
        (MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefgh1"}]', ""),
        (MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', ""),
        (MISTRAL, '[TOOL_CALLS]get_weather{"city": "Paris"}', ""),
        (MISTRAL, 'Hm.[TOOL_CALLS]get_weather[CALL_ID]abcdefgh1[ARGS]{"city": "Paris"}', "Hm."),
        (
            CODER,
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
            "",
        ),
        (CODER, "Hm.\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>", "Hm."),
        (
            DEEPSEEK,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "",
        ),
        (
            DEEPSEEK,
            "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
            '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "Hm.",
        ),
        (GLM, "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>", ""),
        (GLM, "Hm.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>", "Hm."),
        (GEMMA, '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', ""),
        (KIMI, f"Hm.{KIMI_BEGIN}functions.get_weather:3{KIMI_ARGUMENTS}{PARIS.arguments}{KIMI_END}", "Hm."),
        (KIMI, f"{KIMI_BEGIN}get_weather:0{KIMI_ARGUMENTS}{PARIS.arguments}{KIMI_END}", ""),
        (LLAMA4, '[get_weather(city="Paris")]', ""),
        (LLAMA4, "Hm.\n<|python_start|>[get_weather(city='Paris')]<|python_end|>", "Hm."),
    ],
)
def test_calls_are_parsed_in_every_form_of_a_family(family: ChatFormat, text: str, content: str, tools) -> None:
    assert family.read(text, tools) == Reply(content, "", (PARIS,))
    assert family.read(text) == Reply(text)  # without declared tools there are no calls


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n' * 2),
        (HERMES, '<tool_call>[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]</tool_call>'),
        (LLAMA, '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}'),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}};\n<|python_tag|>{"name": "f", "parameters": {}}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}"),
        (CODER, "<tool_call>\n<function=f>\n</function>\n</tool_call>\n" * 2),
        (
            DEEPSEEK,
            "<｜tool▁calls▁begin｜>"
            + "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>\n" * 2
            + "<｜tool▁calls▁end｜>",
        ),
        (GLM, "<tool_call>f\n</tool_call>\n<tool_call>f</tool_call>"),
        (GEMMA, "<|tool_call>call:f{}<tool_call|><|tool_call>call:f{}<tool_call|><|tool_response>"),
        (
            KIMI,
            f"{KIMI_BEGIN}functions.f:0{KIMI_ARGUMENTS}{{}}<|tool_call_end|>"
            f"<|tool_call_begin|>functions.f:1{KIMI_ARGUMENTS}{{}}{KIMI_END}",
        ),
        (LLAMA4, "[f(), f()]"),
        (HARMONY, " to=functions.f<|channel|>commentary json<|message|>{}<|call|>" * 2),
    ],
)
def test_several_calls_of_one_reply_are_parsed_in_order(family: ChatFormat, text: str) -> None:
    assert family.read(text, ANY) == Reply("", "", (CalledTool("f", "{}"),) * 2)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>'),  # one brace too few
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {}}}\n</tool_call>'),  # one too many
        (HERMES, "<tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>"),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1e999}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": "two\nlines"}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"arguments": {}}\n</tool_call>'),
        (HERMES, "<tool_call>[]</tool_call>"),
        (HERMES, '<tool_call>[{"name": "f", "arguments": {}}, 3]</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": ' + "[" * 5000),
        (HERMES, "The tag is <tool_call>, and it ends with </tool_call>.  "),
        (HERMES, '```json\n{"name": "f", "arguments": {}}\n```'),
        (LLAMA, '{"name": "Bob", "age": 3'),
        (LLAMA, '{"answer": {"name": "f"}}'),
        (LLAMA, 'Write {"name": "f", "parameters": {}} to call it.'),
        (LLAMA, '<|python_tag|>brave_search.call(query="x")'),
        (MISTRAL, "[TOOL_CALLS] none needed"),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": }'),
        (CODER, "<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>"),
        (CODER, "<function=f(x)> is how"),
        (DEEPSEEK, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{broken<｜tool▁call▁end｜>"),
        (DEEPSEEK, "<｜tool▁calls▁begin｜> none <｜tool▁calls▁end｜>"),
        (LLAMA, '{"name": "Bob", "age": 3}'),
        (GLM, "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1\n</tool_call>"),
        (GLM, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),  # Hermes'
        (GLM, "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>a</arg_key><arg_value>2</arg_value>"),
        (HERMES, "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),  # GLM's
        (GEMMA, '<|tool_call>call:f{a:<|"|>x}<tool_call|>'),
        (GEMMA, "<|tool_call>call:f{a:1,a:2}<tool_call|>"),
        (GEMMA, "<|tool_call>call:f{a:one}<tool_call|>"),
        (GEMMA, "<|tool_call>call:f(1)<tool_call|>"),
        (KIMI, f"{KIMI_BEGIN}f{KIMI_ARGUMENTS}{{}}{KIMI_END}"),  # no index
        (LLAMA4, "[f(a=g(1))]"),
        (LLAMA4, "[f(a=1"),
        (LLAMA4, "[f(1)]"),
        (LLAMA4, '["f(a=1)", 2] is a list'),
        (LLAMA4, "[link](https://example.org)"),
        (LLAMA4, "[f(a=__import__('os'))]"),
        (HARMONY, "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{broken"),
        (HARMONY, "<|channel|>commentary to=python code<|message|>print(1)"),
        (HARMONY, "Just text."),
    ],
)
def test_text_that_is_not_a_call_stays_content_unchanged(family: ChatFormat, text: str) -> None:
    reply = family.read(text, ANY)
    assert (reply.content, reply.reasoning, reply.tool_calls) == (text, "", ())


@pytest.mark.parametrize(
    ("family", "text", "malformed"),
    [
        (HERMES, f"<tool_call>{{broken</tool_call> {HERMES_CALL} <tool_call>", 2),
        (HERMES, HERMES_CALL, 0),
        (HERMES, "No call.", 0),
        (LLAMA, '{"name": "f", "parameters": {"a": ', 1),
        (LLAMA, '{"answer": 3}', 0),
        (LLAMA4, "[f(a=1", 1),
        (LLAMA4, "[1, 2]", 0),
        (GLM, "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1", 1),
        (KIMI, f"{KIMI_BEGIN}f{KIMI_ARGUMENTS}{{}}{KIMI_END}", 2),  # the section's marker, and the call's
        (HARMONY, "<|channel|>commentary to=python code<|message|>print(1)", 1),
    ],
)
def test_incomplete_calls_are_counted(family: ChatFormat, text: str, malformed: int) -> None:
    assert family.read(text, ANY).malformed_calls == malformed
    assert family.read(text).malformed_calls == 0


@pytest.mark.parametrize("family", [CODER, GLM], ids=lambda family: family.name)
def test_an_unclosed_value_does_not_absorb_others(family: ChatFormat) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    whole = family.write("f", '{"a": "one", "b": "two"}')
    close = "</parameter>" if family is CODER else "</arg_value>"
    broken = whole.replace(close, "", 1)
    reply = family.read(broken, tools)
    assert (reply.content, reply.tool_calls, reply.malformed_calls > 0) == (broken, (), True)
    inner = family.write("g", '{"c": "x"}')
    (call,) = family.read(family.write("f", json.dumps({"a": inner})), tools).tool_calls
    assert json.loads(call.arguments) == {"a": inner}  # a value may hold a whole call


@pytest.mark.parametrize(
    ("family", "end"),
    [
        (HERMES, "</tool_call>"),
        (CODER, "</tool_call>"),
        (GLM, "</tool_call>"),
        (DEEPSEEK, "<｜tool▁calls▁end｜>"),
        (KIMI, "<|tool_calls_section_end|>"),
        (GEMMA, "<tool_call|>"),
        (LLAMA4, "<|python_end|>"),
    ],
)
def test_no_end_marker_is_left_in_the_content(family: ChatFormat, end: str) -> None:
    call = CalledTool("f", '{"a": "x"}')
    for text in (f"{family.write(*astuple(call))}\n{end}", f"{family.write(*astuple(call))}{end}{end}"):
        assert family.read(text, ANY) == Reply("", "", (call,))
    assert family.read(f"{family.write(*astuple(call))}\n{end}\nSo.", ANY).content == "So."


def test_mistral_thoughts_are_parsed_as_tokens_or_text() -> None:
    tokens = format_of((TEMPLATES / "ministral.jinja").read_text(), {})
    assert tokens.read("[THINK]hm[/THINK]161") == Reply("161", "hm")
    assert tokens.read('[THINK]hm[/THINK]Yes.[TOOL_CALLS]f[ARGS]{"a": 1}', ANY) == Reply(
        "Yes.", "hm", (CalledTool("f", '{"a": 1}'),)
    )
    assert tokens.read("[THINK]hm") == Reply("", "hm")
    plain = format_of("{# <think> #}", {}, "mistral")
    assert plain.read("<think>hm</think>161") == Reply("161", "hm")


def test_harmony_has_a_channel_for_each_part() -> None:
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "<|end|>"}<|call|>'
    )
    assert HARMONY.read(text, ANY) == Reply("I look.", "hm", (CalledTool("f", '{"a": "<|end|>"}'),))
    assert HARMONY.read("<|channel|>final<|message|>161<|return|>") == Reply("161")
    assert HARMONY.read("<|channel|>analysis<|message|>hm") == Reply("", "hm")


def test_the_end_of_the_prompt_determines_whether_a_thought_is_open() -> None:
    thinking = format_of(QWEN3, {})
    assert thinking.read("hm</think>161", opening="<|im_start|>assistant\n<think>\n") == Reply("161", "hm")
    assert format_of(QWEN3_THINKING, {}).read("161", opening="<think>\n\n</think>\n\n") == Reply("161")


def test_a_broken_call_does_not_affect_the_next_one(tools) -> None:
    broken = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par}}\n</tool_call>'
    assert HERMES.read(f"{broken}\n{HERMES_CALL}", tools) == Reply(broken, "", (PARIS,), malformed_calls=1)


def test_text_around_calls_is_kept(tools) -> None:
    reply = HERMES.read(f"First.\n\n{HERMES_CALL}\n{HERMES_CALL}\nThen this.\n", tools)
    assert reply == Reply("First.\n\nThen this.\n", "", (PARIS, PARIS))


def test_a_call_of_an_undeclared_tool_is_parsed() -> None:
    assert HERMES.read('<tool_call>{"name": "other", "arguments": {}}</tool_call>', ANY).tool_calls[0].name == "other"


def test_markers_within_an_argument_are_text() -> None:
    odd = '</tool_call> <tool_call>{"name": "x", "arguments": {}}</tool_call> \\ } ] "'
    text = HERMES.write("f", json.dumps({"a": odd}))
    assert json.loads(HERMES.read(text, ANY).tool_calls[0].arguments) == {"a": odd}


def test_unencodable_arguments_are_escaped() -> None:
    arguments = HERMES.read('<tool_call>{"name": "f", "arguments": {"a": "\\ud800é"}}</tool_call>', ANY).tool_calls[0]
    assert json.loads(arguments.arguments.encode()) == {"a": "\ud800é"}


def test_xml_arguments_have_the_types_their_tool_declares() -> None:
    kinds = {"s": "string", "i": "integer", "n": "number", "b": "boolean", "o": "object", "l": ["array", "null"]}
    properties: dict[str, Any] = {key: {"type": kind} for key, kind in kinds.items()}
    properties["any"] = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    tool = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}]

    def read(**given: str) -> dict[str, Any]:
        values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given.items())
        text = f"<tool_call>\n<function=f>\n{values}</function>\n</tool_call>"
        return json.loads(CODER.read(text, tool).tool_calls[0].arguments)

    assert read(s="5", i="5", n="2.5", b="True", o='{"a": [1]}', l="null", any="5", other="5") == {
        **{"s": "5", "i": 5, "n": 2.5, "b": True, "o": {"a": [1]}, "l": None, "any": 5},
        "other": "5",
    }
    assert read(i="five", o="{broken", any="five", s="  two\n\nlines ") == {
        **{"i": "five", "o": "{broken", "any": "five", "s": "  two\n\nlines "},
    }
    assert read(s="a </parameter> b")["s"] == "a </parameter> b"


def test_thoughts_are_parsed_for_thinking_models() -> None:
    thinking, opened, other = (format_of(t, {}) for t in (QWEN3, QWEN3_THINKING, QWEN2_5))
    assert thinking.read("<think>\nhm\n</think>\n\n161") == Reply("161", "hm")
    assert thinking.read("161 <think>hm</think>") == Reply("161 <think>hm</think>")
    assert thinking.read("<think>\nhm") == Reply("", "hm")
    assert opened.read("hm\n</think>\n\n161") == Reply("161", "hm")
    assert opened.read("<think>\nhm</think>161") == Reply("161", "hm")
    assert opened.read("hm") == Reply("", "hm")
    assert other.read("<think>hm</think>161") == Reply("<think>hm</think>161")
    assert format_of(QWEN2_5, {"<think>": 7}).read("<think>hm</think>161") == Reply("161", "hm")
    assert thinking.read(f"<think>{HERMES_CALL}</think>\n{HERMES_CALL}", ANY) == Reply("", HERMES_CALL, (PARIS,))


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
