"""A model call in no dialect, and the pieces of its answers as they come."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass

from midstream.engines.formats import Delta
from midstream.gateway.answer import Answer
from midstream.record.recorder import Call


@dataclass(frozen=True, slots=True)
class Piece:
    """What a stream hands on: a delta of the answer at `choice`, or that answer, which ends it."""

    choice: int
    answer_id: str
    delta: Delta | None = None
    answer: Answer | None = None
    log_probs: tuple[tuple[int, float], ...] = ()
    """Tokens sampled since the last piece, with their log-probabilities."""
    prompt_tokens: int = 0
    """How many tokens the prompt has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A model call in no dialect: `call` without what belongs to one choice of it, and how many choices."""

    call: Call
    choices: int = 1
    key: str | None = None
    """The idempotency key: the same one gets the same answers."""
    retry: int | None = None
    """How often the client's SDK has made this call before; None from clients that do not say."""
    role: str | None = None
    """The module role that speaks, where the agent says."""
    due: float = math.inf
    """When it must be answered, by the event loop's clock."""
    fingerprint: str = ""
    """With a key: calls whose prompt, sampling or constraint differ differ in it."""


def fingerprint_of(call: Call) -> str:
    """A word in which calls differ whose prompt, sampling or constraint differ."""
    said = (call.messages, call.tools, call.prompt_ids, asdict(call.sampling), call.constraint, call.top_log_probs)
    return hashlib.sha256(repr(said).encode(errors="backslashreplace")).hexdigest()[:32]
