"""One response on its way to an agent: tokens in, deltas out, and at the end what was said.

The recorded step holds the tokens. Here a copy of their text is cut at the first stop string and read by the model's
chat format; pieces are given out as soon as nothing that follows can change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midstream.core.types import Message, Step, ToolSchema
from midstream.engines.base import Completion
from midstream.engines.chat import ChatTokenizer
from midstream.engines.detokenize import TextStream
from midstream.engines.formats import Delta, Reply
from midstream.record.tree import told


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call came to. `top` is None for an answer that was recorded before and is given again."""

    step: Step
    reply: Reply
    top: tuple[tuple[tuple[int, float], ...], ...] | None

    @property
    def finish_reason(self) -> str:
        """As OpenAI words it: `tool_calls`, `stop` or `length`."""
        return "tool_calls" if self.reply.tool_calls else str(self.step.finish_reason)

    @property
    def id(self) -> str:
        """The same one however often the answer is given."""
        return self.step.metadata["answer_id"]

    def message(self) -> Message:
        """The assistant's message, as OpenAI's chat API has it."""
        message: Message = {"role": "assistant", "content": self.reply.content}
        if self.reply.reasoning:
            message["reasoning_content"] = self.reply.reasoning
        if self.reply.tool_calls:
            message["content"] = self.reply.content or None
            message["tool_calls"] = [
                {
                    "id": call_id(self.id, place),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(self.reply.tool_calls)
            ]
        return message


def call_id(answer_id: str, place: int) -> str:
    """The id of the tool call at `place` in an answer."""
    return f"call_{answer_id[:20]}{place:02d}"


def answer_of(step: Step, tokenizer: ChatTokenizer, completion: Completion | None = None) -> Answer:
    """The answer that a recorded step is."""
    text = told(step.text, step.metadata.get("stop", ()))
    return Answer(
        step, tokenizer.format.read(text, step.tools), None if completion is None else completion.top_log_probs
    )


def deltas_of(answer: Answer) -> list[Delta]:
    """An answer that is there already, as deltas."""
    reply = answer.reply
    deltas = [Delta(reasoning=reply.reasoning)] if reply.reasoning else []
    deltas += [Delta(content=reply.content)] if reply.content else []
    for place, called in enumerate(reply.tool_calls):
        deltas.append(Delta(call=place, name=called.name, arguments=called.arguments))
    return deltas


class AnswerStream:
    """Deltas of one response as its tokens come."""

    def __init__(self, tokenizer: ChatTokenizer, tools: Sequence[ToolSchema], stop: Sequence[str]) -> None:
        self._text, self._reader = TextStream(tokenizer), tokenizer.format.reader(tools)
        self._stop, self._held, self._stopped = stop, "", False

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        return self._cut(self._text.feed(ids), last=False)

    def close(self) -> list[Delta]:
        deltas = self._cut(self._text.close(), last=True)
        return [*deltas, *self._reader.close()]

    def _cut(self, new: str, *, last: bool) -> list[Delta]:
        """What is read of `new`: nothing past a stop string, and not yet what may be the beginning of one."""
        if self._stopped:
            return []
        self._held += new
        before = told(self._held, self._stop)
        if len(before) < len(self._held):
            self._stopped = True
            return self._reader.feed(before) if before else []
        kept = 0 if last else max((_overlap(self._held, string) for string in self._stop), default=0)
        ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._reader.feed(ready) if ready else []


def _overlap(text: str, string: str) -> int:
    """How much of the end of `text` is a beginning of `string`."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def usage_of(answers: Sequence[Answer]) -> tuple[int, int]:
    """Tokens of the prompt (counted once) and of all responses."""
    prompt = len(answers[0].step.prompt_ids) if answers else 0
    return prompt, sum(len(answer.step.response_ids) for answer in answers)
