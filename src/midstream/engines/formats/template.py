"""What a chat template does with tools, calls and thoughts: found out by rendering, not by reading it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from midstream.core.errors import Unsupported
from midstream.core.types import Message, ToolSchema

_SIGN = "zqsign"
_USER: Message = {"role": "user", "content": "?"}
_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": _SIGN,
        "description": "?",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "?"}},
            "required": ["a"],
        },
    },
}
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class TooMuch(Unsupported):
    """A template runs too long or makes too much."""


def render(
    source: str,
    messages: Sequence[Message],
    tools: Sequence[ToolSchema] | None,
    special: Mapping[str, Any],
    *,
    open_reply: bool,
) -> str:
    """The conversation as the template `source` writes it, in transformers' sandbox and within bounds (`bounded.py`).
    Raises `Unsupported` with what the template said when it refuses, `TooMuch` when it does not come to an end."""
    if not messages:
        raise Unsupported("a conversation of no messages")
    from jinja2 import TemplateError

    from midstream.engines.formats.bounded import render_bounded

    # What `apply_chat_template` gives a template, once it has copied every message.
    arguments = {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": open_reply}
    try:
        return render_bounded(source, {**arguments, **special})
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise Unsupported(f"the model's chat template refuses these messages: {error}") from None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a template does. `thinks` is how a reply begins that holds a thought: with the tag, within it because the
    prompt has opened it, or not at all, as the model knows of no such tag."""

    source: str
    declares: bool
    writes_calls: bool
    arguments: Literal["object", "text"]
    knows_tool_role: bool
    takes_images: bool
    thinks: Literal["no", "tag", "opened"]


def facts_of(source: str, vocabulary: Mapping[str, int]) -> Facts:
    """Find out what the template `source` does. Raises `TooMuch` for one that does not come to an end."""

    def writes(what: str, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> bool:
        try:
            return what in render(source, messages, tools, _SPECIAL, open_reply=True)
        except TooMuch:
            raise
        except Unsupported:
            return False

    def roles(role: str) -> str:
        result = {"role": role, "content": _SIGN, "tool_call_id": "abcdefgh1", "name": _SIGN}
        try:
            return render(source, [_USER, call, result], [_TOOL], _SPECIAL, open_reply=True)
        except TooMuch:
            raise
        except Unsupported:
            return ""

    as_object = {"id": "abcdefgh1", "type": "function", "function": {"name": _SIGN, "arguments": {"zqkey": 1}}}
    as_text = {**as_object, "function": {"name": _SIGN, "arguments": '{"zqkey": 1}'}}
    objects: list[Message] = [_USER, {"role": "assistant", "content": "", "tool_calls": [as_object]}]
    # One that expects text fails on an object, or writes it as Python does.
    takes_object = writes("zqkey", objects) and not writes("'zqkey'", objects)
    calls = [as_object if takes_object else as_text]
    call: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    result = roles("tool")
    image = [{"type": "text", "text": _SIGN}, {"type": "image_url", "image_url": {"url": "data:"}}]
    try:
        opening = render(source, [_USER], None, _SPECIAL, open_reply=True)
    except TooMuch:
        raise
    except Unsupported:
        opening = ""
    opened = re.search(r"<think>\s*\Z", opening) is not None
    return Facts(
        source=source,
        declares=writes(_SIGN, [_USER], [_TOOL]),
        writes_calls=writes(_SIGN, [_USER, call]),
        arguments="object" if takes_object else "text",
        # A template that prints any role would print this one too, and the model has never seen it.
        knows_tool_role=_SIGN in result and result != roles("zqrole").replace("zqrole", "tool"),
        takes_images="image" in source and writes(_SIGN, [{"role": "user", "content": image}]),
        thinks="opened" if opened else "tag" if "<think>" in source or "<think>" in vocabulary else "no",
    )
