"""Turns with tools, for every family: golden text of a conversation, and the tokens that continue a sampled reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.engines.formats.conftest import declared

from midstream.core.types import Message
from midstream.engines.chat import ChatTokenizer

ASKED: Message = {"role": "user", "content": "How warm is it in Paris?"}
TOOLS = [declared("get_weather", {"city": {"type": "string"}}, ["city"])]
THOUGHT = "I look."

# The special tokens of each family's models; the first one ends a turn with a call.
HERMES = ("<|im_end|>", "<tool_call>", "</tool_call>")
GLM = (
    *("<|observation|>", "<|user|>", "<|assistant|>", "<tool_call>", "</tool_call>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>"),
)
HARMONY = ("<|call|>", "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>")
GEMMA = (
    *("<|tool_response>", "<|tool_call>", "<tool_call|>", '<|"|>', "<tool_response|>", "<|turn>", "<turn|>"),
    *("<|channel>", "<channel|>"),
)
KIMI = (
    *("<|im_end|>", "<|im_user|>", "<|im_system|>", "<|im_assistant|>", "<|im_middle|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    "<|tool_call_argument_begin|>",
)
DEEPSEEK = (
    *("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
)
MISTRAL = ("<|im_end|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")

# The sampled reply, and what follows it in the next turn's prompt, including the reply's end token.
TURNS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "qwen2_5": (
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        (*HERMES, "<think>", "</think>"),
        "<think>\nI look.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3_coder": (
        HERMES,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3_1": (
        ("<|eot_id|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"),
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n21<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama4": (
        ("<|eot|>", "<|header_start|>", "<|header_end|>"),
        '[get_weather(city="Paris")]',
        "<|eot|><|header_start|>ipython<|header_end|>\n\n21<|eot|><|header_start|>assistant<|header_end|>\n\n",
    ),
    "glm4_5": (
        GLM,
        "\n<think>I look.</think>\n<tool_call>get_weather\n"
        "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "<|observation|>\n<tool_response>\n21\n</tool_response><|assistant|>",
    ),
    "glm4_7": (
        GLM,
        "I look.</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        "<|observation|><tool_response>21</tool_response><|assistant|><think>",
    ),
    "gpt_oss": (
        HARMONY,
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Paris"}',
        "<|call|><|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"
        '"21"<|end|><|start|>assistant',
    ),
    "gemma4": (
        GEMMA,
        '<|channel>thought\nI look.\n<channel|><|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>',
        '<|tool_response>response:get_weather{value:<|"|>21<|"|>}<tool_response|>',
    ),
    "kimi_k2": (
        KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        "<|im_end|><|im_system|>tool<|im_middle|>## Return of functions.get_weather:0\n21<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>",
    ),
    "deepseek_v3_1": (
        DEEPSEEK,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        "<｜end▁of▁sentence｜><｜tool▁output▁begin｜>21<｜tool▁output▁end｜>",
    ),
    "mistral_by_name": (
        MISTRAL,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        "<|im_end|>[TOOL_RESULTS]c557a85a0[TOOL_CONTENT]21[/TOOL_RESULTS]",
    ),
    "ministral": (
        (*MISTRAL, "[THINK]", "[/THINK]"),
        '[THINK]I look.[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        "<|im_end|>[TOOL_RESULTS]21[/TOOL_RESULTS]",
    ),
}


def history(tokenizer: ChatTokenizer, text: str) -> Message:
    """The assistant's message as a client sends it back."""
    reply = tokenizer.format.read(text, TOOLS)
    called = [
        {"id": f"call_{n}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for n, call in enumerate(reply.tool_calls)
    ]
    message: Message = {"role": "assistant", "content": reply.content or None}
    return {
        **message,
        **({"tool_calls": called} if called else {}),
        **({"reasoning_content": reply.reasoning} if reply.reasoning else {}),
    }


@pytest.mark.parametrize("template", TURNS)
def test_a_result_continues_the_sampled_call(template: str, tokenizer_like: Callable[..., ChatTokenizer]) -> None:
    tokens, text, follows = TURNS[template]
    tokenizer = tokenizer_like(template, *tokens, special=True, end=tokens[0])
    sampled = tokenizer.encode(text + tokens[0])
    sent = history(tokenizer, text)
    assert [call["function"]["name"] for call in sent["tool_calls"]] == ["get_weather"]
    assert ("reasoning_content" in sent) == (THOUGHT in text)
    result: Message = {"role": "tool", "tool_call_id": "call_0", "content": "21"}
    delta = tokenizer.extension([ASKED], tokenizer.text_of(sampled), sampled, [result], TOOLS, sent=sent)
    assert delta is not None
    assert tokens[0] + tokenizer.decode(delta) == follows
    assert delta == tokenizer.encode(follows)[1:]


@pytest.mark.parametrize("template", TURNS)
def test_history_is_rendered_as_it_was_sampled(template: str, tokenizer_like: Callable[..., ChatTokenizer]) -> None:
    tokens, text, follows = TURNS[template]
    tokenizer = tokenizer_like(template, *tokens, special=True, end=tokens[0])
    result: Message = {"role": "tool", "tool_call_id": "call_0", "content": "21"}
    rendered = tokenizer.template([ASKED, history(tokenizer, text), result], TOOLS, open_reply=True)
    opened = tokenizer.template([ASKED], TOOLS, open_reply=True)
    if template == "gpt_oss":  # its template writes the recipient before the channel, its models after it
        text = text.replace("<|channel|>commentary to=functions.get_weather <|constrain|>json", "{header}").replace(
            "{header}", " to=functions.get_weather<|channel|>commentary json"
        )
    assert rendered == opened + text + follows


KEEPS_THOUGHTS = {"glm4_7": False, "ministral": True, "qwen3": False, "glm4_5": False, "gpt_oss": False}


@pytest.mark.parametrize(("template", "kept"), KEEPS_THOUGHTS.items())
def test_earlier_thoughts_are_kept_only_if_the_template_keeps_them(
    template: str, kept: bool, tokenizer_like: Callable[..., ChatTokenizer]
) -> None:
    tokens = TURNS[template][0]
    end = {"glm4_7": "<|user|>", "glm4_5": "<|user|>", "gpt_oss": "<|return|>"}.get(template, tokens[0])
    tokenizer = tokenizer_like(template, *tokens, special=True, end=end)
    texts: dict[str, str] = {
        "glm4_7": "I look.</think>21.",
        "ministral": "[THINK]I look.[/THINK]21.",
        "qwen3": "<think>\nI look.\n</think>\n\n21.",
        "glm4_5": "\n<think>I look.</think>\n21.",
        "gpt_oss": "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>21.",
    }
    text, new = texts[template], [{"role": "user", "content": "And tomorrow?"}]
    sent = history(tokenizer, text)
    assert (sent["content"], sent["reasoning_content"]) == ("21.", THOUGHT)
    assert (THOUGHT in tokenizer.template([ASKED, sent, *new], open_reply=True)) == kept
    sampled = tokenizer.encode(text + end)
    delta = tokenizer.extension([ASKED], tokenizer.text_of(sampled), sampled, new, sent=sent)
    assert (delta is not None) == kept  # a prompt never contains a thought that the template drops


def test_results_are_matched_to_calls_by_id(tokenizer_like: Callable[..., ChatTokenizer]) -> None:
    def call(name: str, uid: str) -> dict[str, Any]:
        return {"id": uid, "type": "function", "function": {"name": name, "arguments": "{}"}}

    sent: Message = {"role": "assistant", "content": None, "tool_calls": [call("a", "x"), call("b", "y")]}
    results: list[Message] = [{"role": "tool", "tool_call_id": uid, "content": uid} for uid in "yx"]
    kimi = tokenizer_like("kimi_k2", *KIMI, special=True, end=KIMI[0])
    written = kimi.template([ASKED, sent, *results], TOOLS, open_reply=True)
    assert "## Return of functions.b:1\ny" in written and "## Return of functions.a:0\nx" in written
