"""Errors of plans, and the four kinds of failure a handler can report.

The kind decides what happens next: a transient failure is retried after a backoff, a correctable one goes back to the
handler with its message as feedback, a permanent one moves on to the next fallback, and a fatal one fails the run at
once. Each has a budget of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from midstream.core.errors import ConfigError, EngineUnreachable, MidstreamError, RunError
from midstream.core.secrets import text_without_secrets

LONGEST_MESSAGE = 2000


class Kind(StrEnum):
    """Kinds of failure."""

    TRANSIENT = "transient"
    CORRECTABLE = "correctable"
    PERMANENT = "permanent"
    FATAL = "fatal"


class HandlerError(MidstreamError):
    """Base of what a handler raises to say how it failed. Raised itself, it is permanent."""

    kind = Kind.PERMANENT


class Transient(HandlerError):
    """The same call may succeed later: a service was busy or gone."""

    kind = Kind.TRANSIENT


class Correctable(HandlerError):
    """What a model wrote was wrong, and it can do better with this message: `Context.feedback` holds it next time."""

    kind = Kind.CORRECTABLE


class Permanent(HandlerError):
    """The same call cannot succeed; another handler may."""


class Fatal(HandlerError):
    """The whole run is pointless: no fallback, no new plan."""

    kind = Kind.FATAL


class PlanError(ConfigError):
    """A plan is not valid. `problems` lists everything that is wrong, each with the node it is in."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"plan '{name}' is not valid:\n  " + "\n  ".join(problems))


class HandlersMissing(RunError):
    """A run needs versions of handlers that are not registered. The run is `blocked`, and continues once they are, or
    once they were migrated."""


class JournalDamaged(RunError):
    """Rows of a run contradict each other or are missing. Nothing was changed."""


class Stuck(MidstreamError):
    """A bug: a run that should go on has nothing that can. Raised rather than waiting forever."""


class NoSuchRun(RunError):
    """There is no run with this uid."""


class NoSuchQuestion(RunError):
    """There is no open question with this id."""


class AnswerRefused(RunError):
    """An answer does not fit the question's schema, or came too late. Nothing was changed."""


class RunHeld(RunError):
    """Another worker holds the run. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, as the journal keeps it."""

    kind: Kind
    type: str
    """Class name of the exception."""
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Classify an exception: connection errors, timeouts and unreachable engines are transient, what is not a
        `HandlerError` is permanent."""
        kind = Kind.PERMANENT
        if isinstance(error, HandlerError):
            kind = error.kind
        elif isinstance(error, ConnectionError | TimeoutError | EngineUnreachable):
            kind = Kind.TRANSIENT
        try:
            message = text_without_secrets(str(error))[:LONGEST_MESSAGE].encode(errors="backslashreplace").decode()
        except Exception as broken:  # of a class of the handler's author
            message = f"its message cannot be read: {type(broken).__name__}"
        return cls(kind, type(error).__name__, message)

    def as_json(self) -> dict[str, str]:
        return {"kind": str(self.kind), "type": self.type, "message": self.message}

    @classmethod
    def from_json(cls, data: dict[str, str]) -> Failure:
        return cls(Kind(data["kind"]), data["type"], data["message"])

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type
