"""Exceptions. Each message says what was wrong, where, and what to do.

Errors a user can cause derive from `UserError`; the command line prints the message and exits with `exit_code`: 2 for
wrong input, 1 for a run that stopped because its attempts failed. Any other exception is a bug in Midstream and keeps
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MidstreamError(Exception):
    """Base of every error Midstream raises deliberately."""


class UserError(MidstreamError):
    """The user must change something. `hint` says what to do."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}\n  {hint}" if hint else message)


class ConfigError(UserError):
    """A config, or an override on the command line, is wrong."""


class TaskError(UserError):
    """A task file or task set cannot be used."""


class ModelError(UserError):
    """A model is missing, is of the wrong kind, or does not fit the request."""


class RunError(UserError):
    """A run directory cannot be used: it is in use, was changed, or does not exist."""


class AlreadyEnded(RunError):
    """The trajectory has already ended. Its first ending stands."""


class HeldElsewhere(RunError):
    """Another server that shares the store holds this trajectory. Nothing was changed."""


class NameTaken(RunError):
    """Another server that shares the store has the same name."""


class GroupClosed(RunError):
    """The group accepts no more trajectories; a new one would never be trained on. Nothing was changed."""


class LeaseLost(RunError):
    """The owner no longer holds the group. Nothing was changed."""


class PromptTooLong(MidstreamError):
    """A prompt does not fit the context. The trajectory is reported as failed; nothing is cut."""


class ServiceError(MidstreamError):
    """A service that an attempt depends on failed, so the attempt has no known outcome. Fails the trajectory as
    infrastructure; it is never trained on."""


class ToolUnavailable(ServiceError):
    """A tool's service is down or broken, whatever the call was: an index, a search API, an MCP server, a sandbox."""


class EngineError(ServiceError):
    """An engine could not answer a call. Fails the calling trajectory, never the run."""


class EngineUnreachable(EngineError):
    """The engine does not answer, or disconnected before it finished. Another replica may succeed."""


class Unsupported(MidstreamError):
    """The call asks for something this engine or model cannot do; the message names it. Nothing was sampled."""


class TrainingError(UserError):
    """Training cannot continue: a self-check failed or a gradient is not finite."""


class AttemptsFailed(TrainingError):
    """Too many attempts failed: an agent or a reward raised, or a service was unreachable."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt `name`: the closest of `known`, or all of them when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "one of: " + ", ".join(options)
