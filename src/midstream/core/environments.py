"""`Environment`: a problem that responds to actions, such as a game or a task of another project.

The flow `environment_agent` plays environments; `midstream.tasks.environments` adapts those of other projects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from midstream.core.types import Message

Resume = Literal["snapshot", "replay", "none"]
"""How state is restored after its process died: from a `snapshot`, by a `replay` of the recorded actions, or not at all
(`none`): then the attempt starts again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of one action."""

    observation: str = ""
    """Text shown to the agent next. Ignored after the end of the episode."""
    reward: float | None = None
    """Reward of this action; None if the environment gives none for it."""
    done: bool = False
    """Whether the episode has ended."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON data to store with the trajectory."""


class Environment(Protocol):
    """One episode. Methods are never called concurrently, and `close` is called last.

    An environment may have an attribute `resume`. `replay`: the same actions lead to the same observations, so an
    interrupted episode is resumed by taking them again. `snapshot`: it is a `SnapshotEnvironment`. `none`, the default:
    an interrupted episode starts again."""

    async def reset(self) -> Sequence[Message]:
        """Start the episode; return the agent's first messages."""
        ...

    async def act(self, action: str) -> Outcome:
        """Apply the agent's reply as the next action. Respond to an invalid action with an observation that says so; an
        exception fails the trajectory."""
        ...

    async def close(self) -> None:
        """Release all resources. Called once if `reset` was called, even after errors."""
        ...


@runtime_checkable
class SnapshotEnvironment(Environment, Protocol):
    """An environment that can save and restore its state."""

    async def snapshot(self) -> Any:
        """Return the state after the last action, as JSON data."""
        ...

    async def restore(self, state: Any) -> None:
        """Continue from a state that `snapshot` returned, instead of `reset`."""
        ...


def resume_of(environment: Environment) -> Resume:
    """Return how an interrupted episode of `environment` is resumed."""
    return getattr(environment, "resume", "none")
