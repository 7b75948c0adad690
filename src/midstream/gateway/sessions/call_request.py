"""`CallRequest`: a model call independent of the client's API, and the pieces in which its answers are streamed."""

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
    """A piece of a stream: a delta of the answer at `choice`, or that whole answer, which ends it."""

    choice: int
    answer_id: str
    delta: Delta | None = None
    answer: Answer | None = None
    log_probs: tuple[tuple[int, float], ...] = ()
    """Tokens sampled since the last piece, with their log-probabilities."""
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """A request for one or more answers (`choices`) to `call`."""

    call: Call
    choices: int = 1
    key: str | None = None
    """The idempotency key: a repeated request with the same key gets the same answers."""
    retry: int | None = None
    """Number of earlier attempts by the client's SDK; None if it does not say."""
    role: str | None = None
    """The module role, if the agent names one."""
    model: str = ""
    """The model that the request names; empty for the default."""
    due: float = math.inf
    """Deadline, by the event loop's clock."""
    fingerprint: str = ""
    """Fingerprint of `call`, for a request that may be repeated."""


def pieces_of(
    choice: int,
    answer_id: str,
    stream: AnswerStream,
    ids: Sequence[int],
    log_probs: Sequence[float],
    prompt_tokens: int,
) -> Iterator[Piece]:
    """Yield the pieces of newly sampled tokens. Their log-probabilities come with the first piece."""
    sampled = tuple(zip(ids, log_probs, strict=True))
    for delta in stream.feed(ids) or [Delta()]:
        yield Piece(choice, answer_id, delta, log_probs=sampled, prompt_tokens=prompt_tokens)
        sampled = ()


def replayed_pieces(choice: int, answer: Answer, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """Yield the pieces of a recorded answer, token by token."""
    step, size = answer.step, len(answer.step.prompt_ids)
    stream = AnswerStream(tokenizer, step.tools, step.metadata.get("stop", ()), plain=not step.messages)
    for token, log_prob in zip(step.response_ids, step.rollout_log_probs or (), strict=True):
        yield from pieces_of(choice, answer.id, stream, (token,), (log_prob,), size)
    for delta in stream.close():
        yield Piece(choice, answer.id, delta, prompt_tokens=size)


def fingerprint_of(call: Call, adapter: str = "") -> str:
    """Return a hash of prompt, sampling and constraint, and of the adapter if there are several."""
    named = (adapter,) if adapter else ()
    sampling = asdict(call.sampling)
    parts = (call.messages, call.tools, call.prompt_ids, sampling, call.constraint, call.top_log_probs, *named)
    return hashlib.sha256(repr(parts).encode(errors="backslashreplace")).hexdigest()[:32]
