"""Checks whether a prompt can fit the context before it is rendered and encoded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from midstream.core.errors import PromptTooLong
from midstream.core.types import Message, ToolSchema
from midstream.engines.chat import ChatTokenizer
from midstream.engines.long_text import LONG, MANY_MESSAGES, off_loop
from midstream.gateway.dialects.plain_json import is_larger_than

SHORT_ENOUGH = 5
"""Characters per token of the context up to which a prompt is simply encoded. Most text has fewer per token."""
BYTES_PER_TOKEN = 32
"""Upper bound on the bytes of a prompt per token, as JSON with every character escaped."""
BYTES_BESIDE_PROMPT = 1_000_000
"""Allowance for the rest of a body: settings, tools, earlier thoughts that are not sent to the model."""
CHUNK = 50_000
"""Characters encoded at once while tokens are counted."""
SEAM_TOKENS = 2
"""Upper bound on the tokens that splitting text in two adds."""


def largest_body(tokenizer: ChatTokenizer, context_length: int) -> float:
    """Return the size in bytes from which a body cannot hold a prompt that fits. Images are not limited."""
    if tokenizer.takes_images:
        return math.inf
    return BYTES_BESIDE_PROMPT + BYTES_PER_TOKEN * context_length


async def check_length(
    tokenizer: ChatTokenizer, context_length: int, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> None:
    """Raise `PromptTooLong` for a conversation that cannot fit `context_length`.

    Every message is at least one token, and no token is longer than the tokenizer's longest. A long conversation that
    passes both bounds is encoded in chunks, off the event loop, until it exceeds the context. Thoughts do not count:
    templates drop them from the history. A prompt that passes may still prove too long once it is rendered."""
    if len(messages) > context_length:
        raise PromptTooLong(f"{len(messages)} messages do not fit a context of {context_length} tokens")
    declared = ""
    if tools:
        large = is_larger_than(tools, LONG)
        declared = await off_loop(_as_json, tools) if large else _as_json(tools)
    if characters_of(messages) + len(declared) > SHORT_ENOUGH * context_length:
        await check_texts(tokenizer, context_length, [*_texts(messages), declared])


async def check_texts(tokenizer: ChatTokenizer, context_length: int, texts: Sequence[str]) -> None:
    """Raise `PromptTooLong` if `texts`, parts of one prompt, cannot fit `context_length`."""
    characters = sum(map(len, texts))
    if characters <= SHORT_ENOUGH * context_length:
        return
    if characters <= tokenizer.longest_token * context_length:
        tokens = await off_loop(_count_up_to, tokenizer, texts, context_length)
        if tokens <= context_length:
            return
    raise PromptTooLong(f"{characters} characters do not fit a context of {context_length} tokens")


def _count_up_to(tokenizer: ChatTokenizer, texts: Iterable[str], most: int) -> int:
    """Return a lower bound on the tokens of `texts`; stops above `most`."""
    tokens = 0
    for text in texts:
        for start in range(0, len(text), CHUNK):
            tokens += max(0, len(tokenizer.encode(text[start : start + CHUNK])) - SEAM_TOKENS)
            if tokens > most:
                return tokens
    return tokens


def _as_json(tools: Sequence[ToolSchema]) -> str:
    return json.dumps(list(tools), ensure_ascii=False)


async def rendered(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    tools: Sequence[ToolSchema] = (),
    arguments: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Return `tokenizer.render(...)`; a long conversation is rendered off the event loop."""
    if len(messages) > MANY_MESSAGES or characters_of(messages) > LONG:
        return await off_loop(tokenizer.render, messages, tools, arguments)
    return tokenizer.render(messages, tools, arguments)


def characters_of(messages: Sequence[Message]) -> int:
    """Return the characters of contents and calls, including parts that are not text."""
    size = 0
    for message in messages:
        content = message.get("content")
        size += len(content) if isinstance(content, str) else sum(len(str(part)) for part in content or ())
        size += sum(len(call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    return size


def _texts(messages: Sequence[Message]) -> list[str]:
    """Return the text that a template writes: contents and arguments, without thoughts."""
    texts: list[str] = []
    for message in messages:
        content: Any = message.get("content")
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
        if message["role"] == "assistant":
            parts = [part.rpartition("</think>")[2] for part in parts]
        texts += [*parts, *(call["function"]["arguments"] for call in message.get("tool_calls") or ())]
    return texts
