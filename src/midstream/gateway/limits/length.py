"""Whether a prompt can fit the context, judged before it is rendered or encoded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from midstream.core.errors import PromptTooLong
from midstream.core.types import Message, ToolSchema
from midstream.engines.chat import ChatTokenizer
from midstream.engines.long_text import LONG, MANY_MESSAGES, off_loop

PLAIN = 5
"""Characters a token of the context up to which a prompt is simply encoded: most text has fewer than that a token."""
BYTES_A_TOKEN = 32
"""More than a prompt has for each of its tokens, written as JSON with every character escaped."""
BYTES_BESIDE = 1_000_000
"""What a body may have beside its prompt: settings, tools, thoughts that are not sent to the model again."""
CHUNK = 50_000
"""Characters that are encoded at once while tokens are counted."""
SEAM_TOKENS = 2
"""By so many tokens at most text may shrink where two chunks meet."""


def largest_body(tokenizer: ChatTokenizer, context_length: int) -> float:
    """Bytes from which a body holds no prompt that fits `context_length`. Images have no such limit."""
    if tokenizer.takes_images:
        return math.inf
    return BYTES_BESIDE + BYTES_A_TOKEN * context_length


async def check_length(
    tokenizer: ChatTokenizer, context_length: int, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> None:
    """Raises `PromptTooLong` for a conversation that cannot fit `context_length`.

    A message is a token at least, and no token has more characters than the longest one; what passes that and is long
    all the same is encoded a piece at a time, outside the event loop, until it is too much. Thoughts do not count, as
    templates leave them out of the history. A prompt that passes may still be found too long once it is rendered."""
    if len(messages) > context_length:
        raise PromptTooLong(f"{len(messages)} messages do not fit a context of {context_length} tokens")
    declared = json.dumps(list(tools), ensure_ascii=False) if tools else ""
    if characters_of(messages) + len(declared) > PLAIN * context_length:
        await check_texts(tokenizer, context_length, [*_texts(messages), declared])


async def check_texts(tokenizer: ChatTokenizer, context_length: int, texts: Sequence[str]) -> None:
    """The same for texts that all become part of one prompt."""
    characters = sum(map(len, texts))
    if characters <= PLAIN * context_length:
        return
    if characters <= tokenizer.longest_token * context_length:
        tokens = await off_loop(_at_least, tokenizer, texts, context_length)
        if tokens <= context_length:
            return
    raise PromptTooLong(f"{characters} characters do not fit a context of {context_length} tokens")


def _at_least(tokenizer: ChatTokenizer, texts: Iterable[str], most: int) -> int:
    """How many tokens `texts` have, or a number above `most` when they have more."""
    tokens = 0
    for text in texts:
        for start in range(0, len(text), CHUNK):
            tokens += max(0, len(tokenizer.encode(text[start : start + CHUNK])) - SEAM_TOKENS)
            if tokens > most:
                return tokens
    return tokens


async def rendered(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    tools: Sequence[ToolSchema] = (),
    arguments: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """`tokenizer.render`, outside the event loop where that takes long."""
    if len(messages) > MANY_MESSAGES or characters_of(messages) > LONG:
        return await off_loop(tokenizer.render, messages, tools, arguments)
    return tokenizer.render(messages, tools, arguments)


def characters_of(messages: Sequence[Message]) -> int:
    """Characters of what messages say and call, those of parts that are no text among them."""
    size = 0
    for message in messages:
        content = message.get("content")
        size += len(content) if isinstance(content, str) else sum(len(str(part)) for part in content or ())
        size += sum(len(call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    return size


def _texts(messages: Sequence[Message]) -> list[str]:
    """What a template writes of the messages: text and arguments, without what was thought."""
    texts: list[str] = []
    for message in messages:
        content: Any = message.get("content")
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
        if message["role"] == "assistant":
            parts = [part.rpartition("</think>")[2] for part in parts]
        texts += [*parts, *(call["function"]["arguments"] for call in message.get("tool_calls") or ())]
    return texts
