"""No tool calls: a reply is plain text."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.core.errors import Unsupported
from midstream.core.types import Constraint, Message, ToolSchema
from midstream.engines.formats.chat_format import ChatFormat, Guard, unguarded
from midstream.engines.formats.reply import ToolChoice


class Plain(ChatFormat):
    """Parses thoughts but no calls; rejects a conversation that declares tools."""

    name = "plain"

    def declares(self) -> bool:
        return False

    def messages(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], guard: Guard = unguarded
    ) -> list[Message]:
        self._refuse(tools)
        return super().messages(messages, tools, guard)

    def write(self, name: str, arguments: str) -> str:
        raise Unsupported(f"a call of '{name}' among the messages: {self.why}")

    def constraint(self, tools: Sequence[ToolSchema], choice: ToolChoice, parallel: bool) -> Constraint | None:
        self._refuse(tools)
        return super().constraint(tools, choice, parallel)

    def _refuse(self, tools: Sequence[ToolSchema]) -> None:
        if tools:
            raise Unsupported(f"tools: this model's replies are read as plain text ({self.why})")
