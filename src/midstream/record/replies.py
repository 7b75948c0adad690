"""Reads a recorded step as a message: content, thought and tool calls as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self

from midstream.core.types import Message, Step
from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import CalledTool, Delta, Reply
from midstream.engines.formats.reply import joined
from midstream.record.tree import truncate_at_stop


def deltas_of(step: Step, tokenizer: ChatTokenizer) -> list[Delta]:
    """Parse the text of `step`, up to its stop string."""
    parser = tokenizer.format.parser(step.tools)
    return [*parser.feed(truncate_at_stop(step.text, step.metadata.get("stop", ()))), *parser.close()]


def reply_of(step: Step, tokenizer: ChatTokenizer | None) -> Reply:
    """Return the parsed text of `step`; without a tokenizer all of it is content."""
    if tokenizer is None:
        return Reply(truncate_at_stop(step.text, step.metadata.get("stop", ())))
    return joined(deltas_of(step, tokenizer))


def reply_from(message: Mapping[str, Any]) -> Reply:
    """Return the reply in an assistant's message of OpenAI's chat API."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return Reply(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        tuple(CalledTool(function["name"], function["arguments"]) for function in functions),
    )


@dataclass(frozen=True, kw_only=True)
class ChatStep(Step):
    """A recorded step, and its text read as a message."""

    read: Callable[[Step], Reply] = field(repr=False, compare=False)

    @classmethod
    def of(cls, step: Step, read: Callable[[Step], Reply]) -> Self:
        return cls(**{one.name: getattr(step, one.name) for one in fields(Step)}, read=read)

    @cached_property
    def reply(self) -> Reply:
        return self.read(self)

    @property
    def content(self) -> str:
        """The text without thought and tool calls."""
        return self.reply.content

    @property
    def tool_calls(self) -> tuple[CalledTool, ...]:
        """The tools that the reply calls; nothing has been run. Only calls of declared tools are recognised as such."""
        return self.reply.tool_calls

    @property
    def message(self) -> Message:
        """The assistant's message, to continue the conversation with."""
        return self.reply.message([f"call_{self.step_index}_{place}" for place in range(len(self.tool_calls))])
