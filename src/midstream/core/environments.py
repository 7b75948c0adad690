"""`Environment`: a problem that answers actions, such as a game or another project's task.

The flow `environment_agent` plays one; `midstream.tasks.environments` adapts those of other projects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from midstream.core.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one action led to."""

    observation: str = ""
    """What the agent is shown next. Ignored once the episode has ended."""
    reward: float | None = None
    """Reward of this action; None if the environment gives none for it."""
    done: bool = False
    """Whether the episode has ended."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Further facts to keep with the trajectory: anything JSON can carry."""


class Environment(Protocol):
    """One episode. Methods are called in turn, never at the same time, and `close` last."""

    async def reset(self) -> Sequence[Message]:
        """Begin the episode; returns the messages that the agent starts with."""
        ...

    async def act(self, action: str) -> Outcome:
        """Take the agent's reply as the next action. A reply that is no valid action is answered by an observation that
        says so, not by an error: an error fails the trajectory."""
        ...

    async def close(self) -> None:
        """Release everything. Called once, after `reset` was called, whatever happened."""
        ...
