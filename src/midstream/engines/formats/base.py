"""What a chat format does: read tool calls and thoughts out of a reply, and write them into a prompt.

A format works on a copy of the text. The sampled tokens stay the truth: what is read here is what an agent is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from midstream.core.types import Message, ToolSchema
from midstream.engines.base import Constraint

ToolChoice = Literal["auto", "none", "required"] | str
"""Whether a reply may, must not or must call a tool; any other text is the name of the one it must call."""


@dataclass(frozen=True, slots=True)
class CalledTool:
    """One call as the model wrote it. `arguments` is JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, read. What cannot be read as a call stays in `content`, word for word."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[CalledTool, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply as it streams. Of a tool call, the piece that begins it has its `name`; pieces of `arguments`
    follow, `call` being its place among the reply's calls."""

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str = ""
    arguments: str = ""


class ReplyReader(Protocol):
    """Reads one reply as it comes. Whatever the pieces were, all deltas together are what `ChatFormat.read` makes of
    the whole text."""

    def feed(self, text: str) -> list[Delta]: ...

    def close(self) -> list[Delta]:
        """What was held back, once the reply has ended."""
        ...


class Guard(Protocol):
    """Keeps text from outside from being read as control tokens. With `own`, the format's own markers stay tokens."""

    def __call__(self, text: str, *, own: bool = False) -> str: ...


def unguarded(text: str, *, own: bool = False) -> str:
    """The guard that lets all text pass as it is."""
    return text


class ChatFormat(Protocol):
    """One family's way. `tools` are those the prompt declared; with none, nothing is read as a call."""

    name: str
    why: str
    """What this format was chosen for."""
    markers: tuple[str, ...]
    """What a reply may hold as control tokens: what begins and ends calls and thoughts."""

    def read(self, text: str, tools: Sequence[ToolSchema] = ()) -> Reply:
        """What the whole reply says. Never raises."""
        ...

    def reader(self, tools: Sequence[ToolSchema] = ()) -> ReplyReader: ...

    def messages(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], guard: Guard = unguarded
    ) -> list[Message]:
        """`messages` as the model's template takes them: parts joined, arguments as it wants them, and what the
        template cannot write itself (declarations, calls, results) put into text. Every text from outside goes through
        `guard` before words of the format are put round it. Raises `Unsupported` for what the model cannot be told."""
        ...

    def declares(self) -> bool:
        """Whether the template itself writes tool declarations: then it is given `tools`."""
        ...

    def constraint(self, tools: Sequence[ToolSchema], choice: ToolChoice, parallel: bool) -> Constraint | None:
        """What holds a reply to `choice`; None where nothing needs to. Raises `Unsupported` if no call can meet it."""
        ...

    def answer(self, schema: Mapping[str, Any], tools: Sequence[ToolSchema] = (), parallel: bool = True) -> Constraint:
        """What holds the answer, after any thought, to JSON that `schema` allows, or to calls of `tools`."""
        ...
