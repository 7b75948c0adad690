"""A model call in no dialect, and the pieces of its answers as they come."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import Delta
from midstream.gateway.sessions.answer import Answer, AnswerStream
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
    """Of a call that may be made again: those whose prompt, sampling or constraint differ differ in it."""


def pieces_of(
    choice: int,
    answer_id: str,
    stream: AnswerStream,
    ids: Sequence[int],
    log_probs: Sequence[float],
    prompt_tokens: int,
) -> Iterator[Piece]:
    """What `stream` makes of newly sampled tokens; their log-probabilities come with the first piece."""
    sampled = tuple(zip(ids, log_probs, strict=True))
    for delta in stream.feed(ids) or [Delta()]:
        yield Piece(choice, answer_id, delta, log_probs=sampled, prompt_tokens=prompt_tokens)
        sampled = ()


def pieces_again(choice: int, answer: Answer, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """The stream of an answer that is there already, as it came token by token."""
    step, size = answer.step, len(answer.step.prompt_ids)
    stream = AnswerStream(tokenizer, step.tools, step.metadata.get("stop", ()), plain=not step.messages)
    for token, log_prob in zip(step.response_ids, step.rollout_log_probs or (), strict=True):
        yield from pieces_of(choice, answer.id, stream, (token,), (log_prob,), size)
    for delta in stream.close():
        yield Piece(choice, answer.id, delta, prompt_tokens=size)


def fingerprint_of(call: Call) -> str:
    """A word in which calls differ whose prompt, sampling or constraint differ."""
    said = (call.messages, call.tools, call.prompt_ids, asdict(call.sampling), call.constraint, call.top_log_probs)
    return hashlib.sha256(repr(said).encode(errors="backslashreplace")).hexdigest()[:32]
