"""Short-term memory: the conversation of a trajectory, compacted when it exceeds its budget.

Compaction replaces the oldest messages by a summary. It cuts only between blocks; a call and its results are one block,
so they are never separated. The caller provides the summary: a flow that asks its policy with `chat` records it as a
step, which is trained on with the trajectory's outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from midstream.core.types import Message

SUMMARY = "Summary of the conversation so far:\n"
Summarise = Callable[[Sequence[Message]], Awaitable[str]]
"""Returns a summary of messages."""


@dataclass(slots=True)
class ConversationWindow:
    """`count_tokens` measures text. Above `budget` tokens the window is compacted, so that the kept messages have at
    most the share `keep` of the budget."""

    count_tokens: Callable[[str], int]
    budget: int = 2048
    keep: float = 0.5
    messages: list[Message] = field(default_factory=list)
    compactions: int = 0

    def add(self, *messages: Message) -> None:
        """Append messages. A result must follow its call."""
        self.messages += messages

    def tokens(self) -> int:
        """Estimate the tokens of all messages."""
        return sum(self._tokens(message) for message in self.messages)

    @property
    def full(self) -> bool:
        """Whether the window is over its budget and has something to compact."""
        return self.tokens() > self.budget and bool(self._old())

    async def compact(self, summarise: Summarise) -> bool:
        """If `full`, replace the oldest blocks by their summary; returns whether it did. System messages at the start
        and the latest block are kept."""
        old = self._old() if self.tokens() > self.budget else 0
        if not old:
            return False
        start = self._system()
        text = await summarise(self.messages[start : start + old])
        summary: Message = {"role": "user", "content": SUMMARY + text.strip()}
        self.messages[start : start + old] = [summary]
        self.compactions += 1
        return True

    def blocks(self) -> list[list[Message]]:
        """Return the messages after the system messages in blocks: a call with its results, or a single message."""
        blocks: list[list[Message]] = []
        for message in self.messages[self._system() :]:
            if message["role"] == "tool" and blocks:
                blocks[-1].append(message)
            else:
                blocks.append([message])
        return blocks

    def _old(self) -> int:
        """Return the number of messages to compact."""
        blocks = self.blocks()
        room = self.budget * self.keep
        kept = 0
        for block in reversed(blocks):
            room -= sum(map(self._tokens, block))
            if room < 0 and kept:
                break
            kept += 1
        return sum(len(block) for block in blocks[: len(blocks) - kept])

    def _system(self) -> int:
        """Return the number of system messages at the start."""
        roles = [message["role"] for message in self.messages]
        return next((place for place, role in enumerate(roles) if role not in ("system", "developer")), len(roles))

    def _tokens(self, message: Message) -> int:
        calls = "".join(call["function"]["arguments"] for call in message.get("tool_calls") or ())
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = " ".join(part.get("text", "") for part in content)
        return self.count_tokens(content + calls)
