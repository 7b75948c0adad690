"""Calls and thoughts are parsed from replies, whole or in chunks; all other text stays content unchanged."""

from __future__ import annotations

import json
from dataclasses import astuple
from typing import Any

import pytest
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
    KIMI_ARGUMENTS,
    KIMI_BEGIN,
    KIMI_END,
    LLAMA,
    LLAMA4,
    MISTRAL,
    PARIS,
    QWEN2_5,
    QWEN3,
    QWEN3_THINKING,
    TEMPLATES,
)

from midstream.engines.formats import CalledTool, ChatFormat, Reply, format_of


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
