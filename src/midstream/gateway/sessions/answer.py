"""Turns the tokens of one response into deltas for a client, and at the end into an `Answer`.

The recorded step keeps the tokens. Here their text is cut at the first stop string and parsed by the model's chat
format; a delta is emitted as soon as later tokens cannot change it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from midstream.core.types import FinishReason, Message, Step, ToolSchema
from midstream.engines.base import Completion
from midstream.engines.chat import ChatTokenizer
from midstream.engines.detokenize import TextStream
from midstream.engines.formats import Delta, Reply
from midstream.engines.formats.reply import joined
from midstream.record.recorder import TOP_LOG_PROBS
from midstream.record.replies import deltas_of
from midstream.record.tree import truncate_at_stop

_IDS = Random()
"""Ids need not be secret, and reading the system's random source would release the interpreter's lock each time."""

BLOCK = 64
"""Tokens parsed at once while the end of a thought is located."""

Top = Sequence[Sequence[tuple[int, float]]]


@dataclass(slots=True)
class Part:
    """A thought, a text or a tool call (`text` is its arguments); `place` is its index among parts of its kind."""

    kind: Literal["thought", "text", "call"]
    place: int
    name: str = ""
    text: str = ""


class Outline:
    """The parts of a reply in the order of sampling, built from deltas."""

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        self.parts: list[Part] = []
        for delta in deltas:
            self.add(delta)

    def add(self, delta: Delta) -> Part | None:
        """Return the part that `delta` starts or extends; None for an empty delta."""
        new = delta.content or delta.reasoning or delta.arguments
        if delta.call is None and not new:
            return None
        kind = "call" if delta.call is not None else "thought" if delta.reasoning else "text"
        last = self.parts[-1] if self.parts else None
        if last is None or last.kind != kind or (kind == "call" and last.place != delta.call):
            place = sum(part.kind == kind for part in self.parts) if delta.call is None else delta.call
            last = Part(kind, place, delta.name)
            self.parts.append(last)
        last.text += new
        return last

    def close(self) -> list[Part]:
        """Return all parts after the end of the reply. A reply without text and calls gets an empty text."""
        if all(part.kind == "thought" for part in self.parts):
            self.parts.append(Part("text", 0))
        return self.parts


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call. `top` holds the likeliest tokens at each position, if requested; `thought_tokens` is the
    number of sampled tokens that are thought."""

    step: Step
    reply: Reply
    parts: tuple[Part, ...]
    top: Top = ()
    thought_tokens: int = 0

    @property
    def finish_reason(self) -> str:
        """In OpenAI's terms: `length` if the reply was cut, even after a call; else `tool_calls` or `stop`."""
        if self.step.finish_reason == FinishReason.LENGTH:
            return str(FinishReason.LENGTH)
        return "tool_calls" if self.reply.tool_calls else str(self.step.finish_reason)

    @property
    def id(self) -> str:
        """The same for every replay of the answer."""
        return self.step.metadata["answer_id"]

    def message(self) -> Message:
        """Return the assistant's message in the form of OpenAI's chat API."""
        return self.reply.message([call_id(self.id, place) for place in range(len(self.reply.tool_calls))])


def new_answer_id() -> str:
    """Return 32 hexadecimal digits; the first 8 are the time in seconds since 1970."""
    return f"{int(time.time()):08x}{_IDS.getrandbits(96):024x}"


def created_at(answer_id: str) -> int:
    """Return when an answer was started, in seconds since 1970; the same in all events and replays."""
    return int(answer_id[:8], 16)


def call_id(answer_id: str, place: int) -> str:
    """Return the id of the tool call at `place` in an answer."""
    return f"call_{answer_id[:20]}{place:02d}"


def answer_of(step: Step, tokenizer: ChatTokenizer, completion: Completion | None = None) -> Answer:
    """Return the answer of a recorded step. `completion` is the engine's, if the step is new."""
    deltas = deltas_of(step, tokenizer)
    reply, outline = joined(deltas), Outline(deltas)
    top = step.metadata.get(TOP_LOG_PROBS, ()) if completion is None else completion.top_log_probs
    thought = _thought_tokens(step, reply.reasoning, tokenizer) if reply.reasoning else 0
    return Answer(step, reply, tuple(outline.close()), top, thought)


def _thought_tokens(step: Step, thought: str, tokenizer: ChatTokenizer) -> int:
    """Return the number of tokens up to the end of `thought`, in linear time: first by blocks, then within one."""
    start, _ = _locate(thought, step, tokenizer, 0, BLOCK)
    _, end = _locate(thought, step, tokenizer, start, 1)
    return end


def _locate(thought: str, step: Step, tokenizer: ChatTokenizer, start: int, size: int) -> tuple[int, int]:
    """Return the piece of the response in which `thought` ends. Pieces begin at `start` and have `size` tokens, or more
    where a character would be split."""
    ids, text, parser = step.response_ids, TextStream(tokenizer), tokenizer.format.parser(step.tools)
    begin, end, found = 0, start, 0
    while end < len(ids) or begin < end:
        new = text.feed(ids[begin:end])
        while not new and begin < end < len(ids):
            new = text.feed(ids[end : end + 1])
            end += 1
        found += sum(len(delta.reasoning) for delta in parser.feed(new))
        if found >= len(thought):
            break
        begin, end = end, min(end + size, len(ids))
    return begin, end


class AnswerStream:
    """Converts the tokens of one response to deltas. With `plain` everything is content: thoughts and calls are not
    parsed."""

    def __init__(
        self, tokenizer: ChatTokenizer, tools: Sequence[ToolSchema], stop: Sequence[str], *, plain: bool = False
    ) -> None:
        self._text, self._parser = TextStream(tokenizer), None if plain else tokenizer.format.parser(tools)
        self._stop, self._held_back, self._stopped = stop, "", False

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        return self._cut(self._text.feed(ids), last=False)

    def close(self) -> list[Delta]:
        deltas = self._cut(self._text.close(), last=True)
        return [*deltas, *(self._parser.close() if self._parser is not None else ())]

    def _cut(self, new: str, *, last: bool) -> list[Delta]:
        """Parse `new` up to a stop string, and hold back text that may be the beginning of one."""
        if self._stopped:
            return []
        self._held_back += new
        before = truncate_at_stop(self._held_back, self._stop)
        if len(before) < len(self._held_back):
            self._stopped = True
            return self._parsed(before)
        kept = 0 if last else max((_overlap(self._held_back, string) for string in self._stop), default=0)
        ready, self._held_back = (
            self._held_back[: len(self._held_back) - kept],
            self._held_back[len(self._held_back) - kept :],
        )
        return self._parsed(ready)

    def _parsed(self, text: str) -> list[Delta]:
        if not text:
            return []
        return [Delta(content=text)] if self._parser is None else self._parser.feed(text)


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `string`."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def usage_of(answers: Sequence[Answer]) -> tuple[int, int]:
    """Return the number of tokens of the prompt (counted once) and of all responses."""
    prompt = len(answers[0].step.prompt_ids) if answers else 0
    return prompt, sum(len(answer.step.response_ids) for answer in answers)
