"""Determines how a chat template handles tools, calls and thoughts by rendering it."""

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
_THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Message fields in which chat templates look for an assistant's thought."""
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class TooMuch(Unsupported):
    """A template runs too long or produces too much text."""


def render(
    source: str,
    messages: Sequence[Message],
    tools: Sequence[ToolSchema] | None,
    special: Mapping[str, Any],
    *,
    open_reply: bool,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation with the template `source` in transformers' sandbox, with limits (`bounded.py`).
    `arguments` are further variables of the template (see `variables_of`). Raises `Unsupported`, with the template's
    own message, if it rejects them, and `TooMuch` if it exceeds a limit."""
    if not messages:
        raise Unsupported("a conversation without messages")
    from jinja2 import TemplateError

    from midstream.engines.formats.bounded import render_bounded

    # The same variables as from `apply_chat_template`, which also copies every message.
    given = {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": open_reply}
    try:
        return render_bounded(source, {**given, **special, **(arguments or {})})
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


def variables_of(source: str) -> frozenset[str]:
    """Return the variables that the template `source` reads but does not set."""
    from jinja2 import TemplateSyntaxError, meta
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # `{% generation %}` is an extension of transformers that marks the assistant's text.
    plain = re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", source)
    try:
        parsed = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(plain)
    except TemplateSyntaxError:
        return frozenset()
    return frozenset(meta.find_undeclared_variables(parsed))


@dataclass(frozen=True, slots=True)
class Facts:
    """How a template behaves. `thinks` is how a reply with a thought begins: with the tag, inside the thought because
    the prompt opened it, or never, because the model has no such tag. `thought_field` is the assistant message field
    that the template writes as its thought ("" for none)."""

    source: str
    declares: bool
    writes_calls: bool
    arguments: Literal["object", "text"]
    knows_tool_role: bool
    takes_images: bool
    no_content: str | None
    """Content of a message that only calls tools: "", or None for a template that writes calls only without content."""
    thinks: Literal["no", "tag", "opened"]
    think: tuple[str, str]
    """The tags around a thought."""
    thought_field: str
    refusal: str
    """Why the template rejects a tool call; "" if it does not."""


def begins_thought(prompt: str, think: tuple[str, str]) -> bool:
    """Whether `prompt` ends inside a thought: with its opening tag, followed only by white space."""
    return prompt.rstrip().endswith(think[0].rstrip())


def facts_of(source: str, vocabulary: Mapping[str, int], think: tuple[str, str] = ("<think>", "</think>")) -> Facts:
    """Determine the behaviour of the template `source`. `think` are the tags around a thought. Raises `TooMuch` if the
    template exceeds a limit."""

    def writes(
        what: str, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, closed: bool = False
    ) -> bool:
        try:
            return what in render(source, messages, tools, SPECIAL_TOKENS, open_reply=not closed)
        except TooMuch:
            raise
        except Unsupported:
            return False

    def with_result(role: str) -> str:
        result = {"role": role, "content": _SIGN, "tool_call_id": "abcdefgh1", "name": _SIGN}
        try:
            return render(source, [_USER, call, result], [_TOOL], SPECIAL_TOKENS, open_reply=True)
        except TooMuch:
            raise
        except Unsupported:
            return ""

    as_object = {"id": "abcdefgh1", "type": "function", "function": {"name": _SIGN, "arguments": {"zqkey": 1}}}
    as_text = {**as_object, "function": {"name": _SIGN, "arguments": '{"zqkey": 1}'}}
    declared = {**_TOOL, "function": {**_TOOL["function"], "name": "other"}}  # some fail on calls without tools

    def writes_call(one: Message, content: str | None, what: str = "zqkey") -> bool:
        return writes(what, [_USER, {"role": "assistant", "content": content, "tool_calls": [one]}], [declared])

    # A template that expects text fails on an object, or writes it in Python syntax.
    takes_object = any(writes_call(as_object, c) and not writes_call(as_object, c, "'zqkey'") for c in ("", None))
    calls = [as_object if takes_object else as_text]
    content = None if writes_call(calls[0], None) and not writes_call(calls[0], "") else ""
    call: Message = {"role": "assistant", "content": content, "tool_calls": calls}
    result = with_result("tool")
    image = [{"type": "text", "text": _SIGN}, {"type": "image_url", "image_url": {"url": "data:"}}]
    try:
        opening = render(source, [_USER], None, SPECIAL_TOKENS, open_reply=True)
    except TooMuch:
        raise
    except Unsupported:
        opening = ""
    mark, refusal = think[0].strip(), ""
    try:
        render(source, [_USER, call], [_TOOL], SPECIAL_TOKENS, open_reply=True)
    except TooMuch:
        raise
    except Unsupported as error:
        refusal = str(error)

    def keeps(field: str) -> bool:
        """Whether the template writes the thought in `field`, of a reply or of a call."""
        other = {**calls[0], "function": {**calls[0]["function"], "name": "other"}}
        turns: list[Message] = [
            {"content": "x", field: _SIGN},
            {"content": content, field: _SIGN, "tool_calls": [other]},
        ]
        return any(writes(_SIGN, [_USER, {"role": "assistant", **turn}], closed=True) for turn in turns)

    return Facts(
        source=source,
        declares=writes(_SIGN, [_USER], [_TOOL]),
        writes_calls=writes_call(calls[0], content),
        no_content=content,
        arguments="object" if takes_object else "text",
        # A template that writes any role would also write this one, which its model has never seen.
        knows_tool_role=_SIGN in result and result != with_result("zqrole").replace("zqrole", "tool"),
        takes_images="image" in source and writes(_SIGN, [{"role": "user", "content": image}]),
        thinks="opened" if begins_thought(opening, think) else "tag" if mark in source or mark in vocabulary else "no",
        thought_field=next((field for field in _THOUGHT_FIELDS if field in source and keeps(field)), ""),
        think=think,
        refusal=refusal,
    )
