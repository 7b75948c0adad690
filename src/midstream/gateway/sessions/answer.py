"""One response on its way to an agent: tokens in, deltas out, and at the end what was said.

The recorded step holds the tokens. Here a copy of their text is cut at the first stop string and read by the model's
chat format; pieces are given out as soon as nothing that follows can change them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
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
"""Ids need not be secret, and to ask the system for each would let another thread run first."""

Top = Sequence[Sequence[tuple[int, float]]]


@dataclass(slots=True)
class Part:
    """A thought, a text or a call (`text` is its arguments), at its `place` among the parts of its kind."""

    kind: Literal["thought", "text", "call"]
    place: int
    name: str = ""
    text: str = ""


class Outline:
    """The parts of a reply, in the order in which the model wrote them; grows by deltas."""

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        self.parts: list[Part] = []
        for delta in deltas:
            self.add(delta)

    def add(self, delta: Delta) -> Part | None:
        """The part that `delta` begins or goes on with; None where it holds nothing."""
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
        """All parts, once the reply has ended: one that neither says nor calls anything ends in an empty text."""
        if all(part.kind == "thought" for part in self.parts):
            self.parts.append(Part("text", 0))
        return self.parts


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call came to. `top` are the likeliest tokens at each place, where they were asked for; `thought_tokens`
    is how many of the sampled tokens are thought."""

    step: Step
    reply: Reply
    parts: tuple[Part, ...]
    top: Top = ()
    thought_tokens: int = 0

    @property
    def finish_reason(self) -> str:
        """As OpenAI words it: `length` where the reply was cut, whatever it called before; `tool_calls` or `stop`."""
        if self.step.finish_reason == FinishReason.LENGTH:
            return str(FinishReason.LENGTH)
        return "tool_calls" if self.reply.tool_calls else str(self.step.finish_reason)

    @property
    def id(self) -> str:
        """The same one however often the answer is given."""
        return self.step.metadata["answer_id"]

    def message(self) -> Message:
        """The assistant's message, as OpenAI's chat API has it."""
        return self.reply.message([call_id(self.id, place) for place in range(len(self.reply.tool_calls))])


def new_answer_id() -> str:
    """32 hexadecimal digits, of which the first 8 are the time."""
    return f"{int(time.time()):08x}{_IDS.getrandbits(96):024x}"


def created_at(answer_id: str) -> int:
    """When an answer was begun, in seconds since 1970: the same in all its events, and when it is given again."""
    return int(answer_id[:8], 16)


def call_id(answer_id: str, place: int) -> str:
    """The id of the tool call at `place` in an answer."""
    return f"call_{answer_id[:20]}{place:02d}"


def answer_of(step: Step, tokenizer: ChatTokenizer, completion: Completion | None = None) -> Answer:
    """The answer that a recorded step is; `completion` is what the engine gave, where it has just done so."""
    deltas = deltas_of(step, tokenizer)
    reply, outline = joined(deltas), Outline(deltas)
    top = step.metadata.get(TOP_LOG_PROBS, ()) if completion is None else completion.top_log_probs
    thought = _thought_tokens(step, reply.reasoning, tokenizer) if reply.reasoning else 0
    return Answer(step, reply, tuple(outline.close()), top, thought)


def _thought_tokens(step: Step, thought: str, tokenizer: ChatTokenizer) -> int:
    """How many tokens it took to write `thought`."""

    def thinks_all(size: int) -> bool:
        deltas = tokenizer.format.parser(step.tools).feed(tokenizer.decode(step.response_ids[:size]))
        return "".join(delta.reasoning for delta in deltas) == thought

    return bisect_left(range(len(step.response_ids)), True, key=thinks_all)


class AnswerStream:
    """Deltas of one response as its tokens come. With `plain`, all of it is content: nothing is read as a thought."""

    def __init__(
        self, tokenizer: ChatTokenizer, tools: Sequence[ToolSchema], stop: Sequence[str], *, plain: bool = False
    ) -> None:
        self._text, self._parser = TextStream(tokenizer), None if plain else tokenizer.format.parser(tools)
        self._stop, self._held, self._stopped = stop, "", False

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        return self._cut(self._text.feed(ids), last=False)

    def close(self) -> list[Delta]:
        deltas = self._cut(self._text.close(), last=True)
        return [*deltas, *(self._parser.close() if self._parser is not None else ())]

    def _cut(self, new: str, *, last: bool) -> list[Delta]:
        """What is read of `new`: nothing past a stop string, and not yet what may be the beginning of one."""
        if self._stopped:
            return []
        self._held += new
        before = truncate_at_stop(self._held, self._stop)
        if len(before) < len(self._held):
            self._stopped = True
            return self._said(before)
        kept = 0 if last else max((_overlap(self._held, string) for string in self._stop), default=0)
        ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._said(ready)

    def _said(self, text: str) -> list[Delta]:
        if not text:
            return []
        return [Delta(content=text)] if self._parser is None else self._parser.feed(text)


def _overlap(text: str, string: str) -> int:
    """How much of the end of `text` is a beginning of `string`."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def usage_of(answers: Sequence[Answer]) -> tuple[int, int]:
    """Tokens of the prompt (counted once) and of all responses."""
    prompt = len(answers[0].step.prompt_ids) if answers else 0
    return prompt, sum(len(answer.step.response_ids) for answer in answers)
