"""The evolving memory of one trajectory: typed records of what was asked, done, found and judged, within a token
budget.

It is append-only and shown as the conversation the modules share, so each prompt goes on from the one before. When it
outgrows its budget the results of the oldest turns are shortened: that edits history, and the next call starts a
branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from midstream.core.types import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a module was asked and what it answered."""

    role: str
    asked: str
    answered: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: the planner's action as made, what the tool gave, and the verifier's verdict on it."""

    number: int
    sub_goal: str
    call: ToolCall
    verdict: bool | None = None
    reason: str = ""


@dataclass(slots=True)
class WorkingMemory:
    """Belongs to one trajectory. `count_tokens` measures text; `budget` bounds what `messages` may cost."""

    system: str
    query: str
    count_tokens: Callable[[str], int]
    budget: int = 1024
    exchanges: list[Exchange] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    analysis: str = ""
    shortened: int = 0
    """How many results were cut to stay within the budget."""

    def remember(self, exchange: Exchange) -> None:
        """Add an exchange, and shorten old ones that exceed the budget."""
        self.exchanges.append(exchange)
        while self.tokens() > self.budget and self._shorten():
            pass

    def messages(self, ask: str) -> tuple[Message, ...]:
        """The conversation so far, ending with `ask` to the module that speaks next."""
        result: list[Message] = [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            result += [
                {"role": "user", "content": exchange.asked},
                {"role": "assistant", "content": exchange.answered},
            ]
        return (*result, {"role": "user", "content": ask})

    def tokens(self) -> int:
        """About how many tokens `messages` cost, without the next ask."""
        return self.count_tokens(self.system) + sum(
            self.count_tokens(s.asked) + self.count_tokens(s.answered) for s in self.exchanges
        )

    def found(self) -> list[str]:
        """Results of the successful calls that gave one, oldest first, as the tools gave them."""
        return [turn.call.unmasked or turn.call.result for turn in self.turns if turn.call.ok and turn.call.result]

    def _shorten(self) -> bool:
        """Halve the longest thing asked after the first; False when nothing is left to shorten."""
        candidates = [
            (len(exchange.asked), -index)
            for index, exchange in enumerate(self.exchanges)
            if index and len(exchange.asked) > 160
        ]
        if not candidates:
            return False
        index = -max(candidates)[1]
        exchange = self.exchanges[index]
        keep = len(exchange.asked) // 4
        self.exchanges[index] = Exchange(
            exchange.role, f"{exchange.asked[:keep]} [...] {exchange.asked[-keep:]}", exchange.answered
        )
        self.shortened += 1
        return True
