"""Conversations in each family's format; parts that a template cannot render become text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midstream.core.errors import ConfigError, Unsupported
from midstream.core.types import Message
from midstream.engines.formats import format_of
from midstream.engines.formats.glm4 import GLM4
from midstream.engines.formats.template import render

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SMOLLM2 = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER: Message = {"role": "user", "content": "How warm is it in Paris?"}
RESULTS: list[Message] = [
    {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    {"role": "tool", "tool_call_id": "call_2", "content": "70"},
]


def calls(*units: str, content: str | None = None, **more: Any) -> Message:
    """An assistant message that calls the weather tool for each of `units`."""
    functions = [{"name": "get_weather", "arguments": json.dumps({"city": "Paris", "unit": unit})} for unit in units]
    listed = [{"id": f"call_{n}", "type": "function", "function": one} for n, one in enumerate(functions, 1)]
    return {"role": "assistant", "content": content, "tool_calls": listed, **more}


def written(template: str, messages: list[Message], tools: list[Any] | None = None, name: str = "") -> str:
    source = template if "{" in template else (TEMPLATES / f"{template}.jinja").read_text()
    family = format_of(source, {}, name)
    declared = tools if family.declares() else None
    return render(source, family.messages(messages, tools or []), declared, SPECIAL, open_reply=True)


CELSIUS = '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}'
FAHRENHEIT = CELSIUS.replace("celsius", "fahrenheit")


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3"])
def test_qwen_writes_calls_and_results_in_tags(template: str, tools) -> None:
    text = written(template, [USER, calls("celsius", "fahrenheit", content="I look."), *RESULTS], tools)
    assert text.startswith("<|im_start|>system\n# Tools\n") and json.dumps(tools[0]) in text
    assert text.endswith(
        "<|im_start|>user\nHow warm is it in Paris?<|im_end|>\n<|im_start|>assistant\nI look.\n"
        f"<tool_call>\n{CELSIUS}\n</tool_call>\n<tool_call>\n{FAHRENHEIT}\n</tool_call><|im_end|>\n<|im_start|>user\n"
        "<tool_response>\n21\n</tool_response>\n<tool_response>\n70\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_families_write_calls_and_results_in_their_format(tools) -> None:
    one = [USER, calls("celsius"), RESULTS[0]]
    assert written("llama3_1", one, tools).endswith(
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "get_weather", "parameters": {"city": "Paris", "unit": "celsius"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n21<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    # Mistral's templates require ids of nine letters and digits.
    text = written("mistral", one, tools)
    uid = text.split('"id": "')[1][:9]
    assert uid.isalnum() and text.endswith(
        f'[TOOL_CALLS] [{CELSIUS[:-1]}, "id": "{uid}"}}]</s>[TOOL_RESULTS] {{"content": 21, "call_id": "{uid}"}}'
        "[/TOOL_RESULTS]"
    )
    assert written("deepseek_v3_1", one).endswith(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris", "unit": "celsius"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
        "<｜tool▁output▁begin｜>21<｜tool▁output▁end｜>"
    )
    assert written("qwen3_coder", one, tools).endswith(
        "<|im_start|>assistant\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=unit>\ncelsius\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_are_described_as_text_for_templates_without_tools(tools) -> None:
    text = written(SMOLLM2, [USER, calls("celsius", "fahrenheit"), *RESULTS], tools)
    message, _, rest = text.partition("<|im_end|>\n")
    assert message.startswith("<|im_start|>system\nYou are a function calling AI model.")
    assert all(json.dumps(tool) in message for tool in tools)
    assert rest == (
        "<|im_start|>user\nHow warm is it in Paris?<|im_end|>\n<|im_start|>assistant\n"
        f"<tool_call>\n{CELSIUS}\n</tool_call>\n<tool_call>\n{FAHRENHEIT}\n</tool_call><|im_end|>\n<|im_start|>user\n"
        "<tool_response>\n21\n</tool_response>\n<tool_response>\n70\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    system: Message = {"role": "system", "content": "Be brief."}
    assert written(SMOLLM2, [system, USER], tools).startswith("<|im_start|>system\nBe brief.\n\nYou are a function")


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3_coder", "deepseek", "glm4", "kimi_k2", "llama4"])
def test_a_named_format_is_described_as_text(name: str, tools) -> None:
    source = SMOLLM2
    family = format_of(source, {}, name)
    text = written(source, [USER, calls("celsius")], tools, name)
    assert all(json.dumps(tool) in text for tool in tools)
    reply = text.rpartition("<|im_start|>assistant\n")[0].rpartition("<|im_start|>assistant\n")[2]
    (call,) = family.read(reply.removesuffix("<|im_end|>\n"), tools).tool_calls
    assert json.loads(call.arguments) == {"city": "Paris", "unit": "celsius"}


def test_earlier_thoughts_are_rendered_by_the_template() -> None:
    thought = calls("celsius", reasoning_content="Hm.")
    kept = "<|im_start|>assistant\n<think>\nHm.\n</think>\n\n<tool_call>"
    assert kept in written("qwen3", [USER, thought, RESULTS[0]])
    assert "Hm." not in written("qwen3", [USER, thought, RESULTS[0], {"role": "assistant", "content": "21."}, USER])
    assert "Hm." not in written("qwen2_5", [USER, thought, RESULTS[0]])


def test_arguments_that_are_not_an_object_are_written_unchanged() -> None:
    broken = calls("celsius")
    broken["tool_calls"][0]["function"]["arguments"] = '{"city": '
    assert '"arguments": {"city": }' in written("qwen3", [USER, broken])
    assert '"arguments": {"city": }' in written(SMOLLM2, [USER, broken])


def test_a_template_that_prints_arguments_is_given_text() -> None:
    prints = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments }})"
        "{% endfor %}{% endfor %}"
    )
    assert written(prints, [calls("celsius")]) == 'get_weather({"city": "Paris", "unit": "celsius"})'


def test_parts_are_joined_and_developer_messages_become_system_messages() -> None:
    parts = [{"type": "text", "text": "How warm"}, {"type": "input_text", "text": "is it?"}]
    text = written("qwen2_5", [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow warm\nis it?<|im_end|>\n")


def test_images_need_a_template_that_supports_them() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    asked: list[Message] = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    with pytest.raises(Unsupported, match="an image: this model's chat template has no place"):
        written("qwen2_5", asked)
    with pytest.raises(Unsupported, match="'input_audio'"):
        written("qwen2_5", [{"role": "user", "content": [{"type": "input_audio"}]}])
    sees = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '<image>' if part.type == 'image_url' else part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert written(sees, asked) == "What is this?<image>"


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        ("gemma", [{"role": "system", "content": "Be brief."}, USER], "System role not supported"),
        ("gemma", [USER, USER], "roles must alternate"),
        ("mistral", [USER, USER], "roles must alternate"),
        ("llama3_1", [USER, calls("celsius", "fahrenheit")], "only supports single tool-calls"),
        ("{{ messages[0].content + 1 }}{{ nothing.there }}", [USER], "can only concatenate str"),
        ("qwen2_5", [], "without messages"),
    ],
)
def test_errors_of_a_template_are_passed_on(template: str, messages: list[Message], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        written(template, messages)


@pytest.mark.parametrize(
    ("template", "name", "declares", "thinks"),
    [
        ("qwen2_5", "hermes", True, "no"),
        ("qwen3", "hermes", True, "tag"),
        ("qwen3_thinking", "hermes", True, "opened"),
        ("qwen3_coder", "qwen3_coder", True, "no"),
        ("llama3_1", "llama3", True, "no"),
        ("mistral", "mistral", True, "no"),
        ("mistral_by_name", "mistral", True, "no"),
        ("deepseek_v3_1", "deepseek", False, "no"),
        ("deepseek_r1", "deepseek", False, "opened"),
        ("gemma", "hermes", False, "no"),
        ("glm4_5", "glm4", True, "tag"),
        ("glm4_7", "glm4", True, "opened"),
        ("gpt_oss", "harmony", True, "tag"),
        ("gemma4", "gemma4", True, "tag"),
        ("kimi_k2", "kimi_k2", True, "no"),
        ("llama4", "llama4", True, "no"),
        ("ministral", "mistral", True, "tag"),
    ],
)
def test_the_template_shows_the_format(template: str, name: str, declares: bool, thinks: str) -> None:
    family = format_of((TEMPLATES / f"{template}.jinja").read_text(), {})
    assert (family.name, family.declares(), family.facts.thinks) == (name, declares, thinks) and family.why


CALLS_AND_MORE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        # The tags of Hermes, GLM or Qwen3-Coder, but in another form.
        (
            "<tool_call>{{ c.function.name }}({{ c.function.arguments | tojson }})</tool_call>",
            "unknown form: '<tool_call>",
        ),
        (
            '<tool_call>{"tool": "{{ c.function.name }}", "with": {{ c.function.arguments | tojson }}}</tool_call>',
            "unknown",
        ),
        ("<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>", "unknown form: '<function="),
        (
            '<tools>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tools>',
            "unknown",
        ),
        ('{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}', "unknown form"),
        ("[TOOL_CALLS]{{ c.function.name }}: {{ c.function.arguments | tojson }}", "unknown form"),
        ("<minimax:tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</minimax:tool_call>", "MiniMax"),
        ("<|tool_call_start|>[{{ c.function.name }}({{ c.function.arguments | tojson }})]<|tool_call_end|>", "LFM2"),
        ("<｜DSML｜invoke name='{{ c.function.name }}'>{{ c.function.arguments | tojson }}", "DeepSeek V3.2"),
        ("{{ raise_exception('one call only') }}", "one call only"),
    ],
)
def test_an_unknown_format_is_refused(call: str, reason: str, tools) -> None:
    family = format_of(CALLS_AND_MORE.replace("CALL", call), {"<tool_call>": 1, "</tool_call>": 2})
    assert family.name == "plain" and family.read(f"<tool_call>\n{CELSIUS}\n</tool_call>", tools).tool_calls == ()
    with pytest.raises(Unsupported, match=reason):
        family.messages([USER], tools)


def test_calls_that_a_template_writes_only_without_content(tools) -> None:
    call = "{% if m.content is none %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endif %}"
    template = CALLS_AND_MORE.replace("CALL", call)
    assert format_of(template, {}).name == "hermes"
    assert written(template, [USER, calls("celsius", content="")], tools).count("</tool_call>") == 1


def test_a_format_is_detected_by_vocabulary_or_name(tools) -> None:
    assert format_of(SMOLLM2, {"[TOOL_CALLS]": 5}).why == "the vocabulary has [TOOL_CALLS]"
    assert format_of(SMOLLM2, dict.fromkeys(GLM4.tags, 1)).name == "glm4"
    assert format_of(SMOLLM2, {}, "llama3").name == "llama3"
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        format_of(SMOLLM2, {}, "herms")


def test_tools_are_refused_where_calls_cannot_be_read(tools) -> None:
    unknown = "{{ tools | tojson }}" + SMOLLM2
    family = format_of(unknown, {})
    assert family.name == "plain" and family.read(f"<tool_call>\n{CELSIUS}\n</tool_call>", tools).tool_calls == ()
    with pytest.raises(Unsupported, match="declares tools, but writes no calls"):
        family.messages([USER], tools)
    assert family.messages([USER], []) == [USER]
