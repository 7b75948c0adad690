"""Working memory of one trajectory: typed records of requests, actions, results and verdicts, within a token budget.

It is append-only and shown as the conversation the modules share, so each prompt extends the one before. When it
exceeds its budget, the results of the oldest turns are shortened: that edits history, so the next call starts a
branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from midstream.core.types import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request to a module and its answer."""

    role: str
    asked: str
    answered: str


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn: the planner's action, the tool's result, and the verifier's verdict."""

    number: int
    sub_goal: str
    call: ToolCall
    verdict: bool | None = None
    reason: str = ""


@dataclass(slots=True)
class WorkingMemory:
    """Memory of one trajectory. `count_tokens` measures text; `budget` limits the tokens of `messages`."""

    system: str
    query: str
    count_tokens: Callable[[str], int]
    budget: int = 1024
    exchanges: list[Exchange] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)
    analysis: str = ""
    shortened: int = 0
    """Number of results shortened to fit the budget."""

    def remember(self, exchange: Exchange) -> None:
        """Add an exchange, and shorten old ones that exceed the budget."""
        self.exchanges.append(exchange)
        while self.tokens() > self.budget and self._shorten():
            pass

    def messages(self, ask: str) -> tuple[Message, ...]:
        """Return the conversation so far, ending with `ask` to the next module."""
        result: list[Message] = [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            result += [
                {"role": "user", "content": exchange.asked},
                {"role": "assistant", "content": exchange.answered},
            ]
        return (*result, {"role": "user", "content": ask})

    def tokens(self) -> int:
        """Estimate the tokens of `messages` without the next request."""
        return self.count_tokens(self.system) + sum(
            self.count_tokens(s.asked) + self.count_tokens(s.answered) for s in self.exchanges
        )

    def found(self) -> list[str]:
        """Return results of successful calls, oldest first, as the tools returned them."""
        return [turn.call.unmasked or turn.call.result for turn in self.turns if turn.call.ok and turn.call.result]

    def _shorten(self) -> bool:
        """Halve the longest request after the first; return False if nothing is left to shorten."""
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
