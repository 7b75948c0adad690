"""A parsed reply: content, reasoning and tool calls, whole or as a stream of deltas.

Parsing works on a copy of the text. The sampled tokens remain the record; agents receive the parsed reply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from midstream.core.types import Message

ToolChoice = Literal["auto", "none", "required"] | str
"""Whether a reply may, must not or must call a tool; any other text is the name of the required tool."""


@dataclass(frozen=True, slots=True)
class CalledTool:
    """One tool call. `arguments` is the JSON text of an object."""

    name: str
    arguments: str

    @property
    def values(self) -> Any:
        """The arguments as an object; text that is none is unchanged, and refused where the tool is called."""
        try:
            found: Any = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        return found


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed response. Text that starts like a call but cannot be parsed stays in `content`, verbatim, and is counted
    in `malformed_calls`."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[CalledTool, ...] = ()
    malformed_calls: int = 0

    def message(self, call_ids: Sequence[str]) -> Message:
        """Return the assistant's message of OpenAI's chat API, with an id for each tool call."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["content"] = self.content or None
            message["tool_calls"] = [
                {"id": uid, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for uid, call in zip(call_ids, self.tool_calls, strict=True)
            ]
        return message


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed reply. The first piece of a tool call has its `name`; pieces of `arguments` follow. `call`
    is the index of the call in the reply. `malformed` marks the content piece that starts a malformed call."""

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str = ""
    arguments: str = ""
    malformed: bool = False


class ReplyParser(Protocol):
    """Parses one reply as it streams. For any split of the text, all deltas together equal `ChatFormat.read` of it."""

    def feed(self, text: str) -> list[Delta]:
        """Return the deltas that later text cannot change."""
        ...

    def close(self) -> list[Delta]:
        """Return the remaining deltas at the end of the reply."""
        ...


def joined(deltas: list[Delta]) -> Reply:
    """Combine `deltas` into a reply."""
    calls: list[tuple[str, list[str]]] = []
    for delta in deltas:
        if delta.call is not None and delta.call == len(calls):
            calls.append((delta.name, []))
        if delta.call is not None:
            calls[delta.call][1].append(delta.arguments)
    return Reply(
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        tool_calls=tuple(CalledTool(name, "".join(arguments)) for name, arguments in calls),
        malformed_calls=sum(delta.malformed for delta in deltas),
    )
