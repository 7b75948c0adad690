"""Errors that say what was wrong, where, and what to do.

Every error a user can cause derives from `UserError`; the command line prints its message and exits with its
`exit_code`: 2 for wrong input, 1 for a run that stopped because its attempts failed. Everything else is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MidstreamError(Exception):
    """Base of every error Midstream raises on purpose."""


class UserError(MidstreamError):
    """Something outside our code must change. `hint` says what to do about it."""

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
    """A run directory cannot be used: taken, changed, or not there."""


class AlreadyEnded(RunError):
    """A trajectory was to be ended a second time. What it ended with first stands."""


class HeldElsewhere(RunError):
    """Another server that shares the store holds this trajectory now. Nothing was changed."""


class NameTaken(RunError):
    """Another server that shares the store goes by the same name."""


class GroupClosed(RunError):
    """A trajectory was to join a group that takes no more: it would never be trained on. Nothing was changed."""


class LeaseLost(RunError):
    """A group is no longer held by who thought to hold it. Nothing was changed."""


class PromptTooLong(MidstreamError):
    """A prompt does not fit the context. The trajectory is reported as failed; nothing is cut."""


class EngineError(MidstreamError):
    """An engine could not answer a call. Costs the trajectory that made it, never the run."""


class EngineUnreachable(EngineError):
    """Nobody answers where an engine should be, or it went away before it had answered. Another one may."""


class Unsupported(MidstreamError):
    """A call asks for something this engine or model cannot do; the message names it. Nothing was sampled."""


class TrainingError(UserError):
    """Training cannot go on: a self-check failed or a gradient is not finite."""


class AttemptsFailed(TrainingError):
    """Too many attempts failed to go on: an agent or a reward raised, or a service was gone."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `name`: the closest of `known`, or all of them when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "one of: " + ", ".join(options)
