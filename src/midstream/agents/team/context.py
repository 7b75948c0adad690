"""What the next role sees of a conversation when it is handed over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from midstream.core.config import Config


class ContextPolicy(Config):
    """What of the conversation a role receives with a handoff, beside the task and the message of the handoff."""

    keep: Literal["all", "last", "summary", "none"] = "all"
    """`all`: everything that was said. `last`: the last `last` utterances. `summary`: a summary that the role which
    hands over writes, as a recorded step of its own. `none`: nothing."""
    last: int = Field(default=4, ge=1)
    """Utterances kept by `last`."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What a role said to the team."""

    role: str
    text: str

    def __str__(self) -> str:
        return f"[{self.role}] {self.text}"


async def handed_over(policy: ContextPolicy, said: Sequence[Utterance], summarise: Callable[[], Awaitable[str]]) -> str:
    """Return the conversation `said` as the next role sees it; empty if it sees nothing."""
    if not said or policy.keep == "none":
        return ""
    if policy.keep == "summary":
        return f"Summary of the conversation so far:\n{(await summarise()).strip()}"
    kept = said if policy.keep == "all" else said[-policy.last :]
    return "The conversation so far:\n" + "\n".join(map(str, kept))
