"""Harmony, of gpt-oss: a reply consists of messages, each with a channel; a call is a message to a function.

https://github.com/openai/harmony/blob/main/docs/format.md. `analysis` is the thought; `final`, and `commentary` without
a recipient, are content. The recipient comes before the channel (in templates) or after it (from models). Calls of the
built-in tools (`browser`, `python`) are content and count as malformed, because these tools are not declared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import Tape, Wait, before, called, expect, json_end, loads, skip
from midstream.engines.formats.reply import Delta, ReplyParser

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"

_BEGINNINGS = (START, CHANNEL, " to=", "to=")
_HEADER = re.compile(
    r"(?:<\|start\|>assistant)?\s*(?:to=(?P<before>\S+?))?\s*<\|channel\|>\s*(?P<channel>[a-z]+)\s*"
    r"(?:to=(?P<after>[^\s<]+))?\s*(?:(?:<\|constrain\|>)?\s*[a-z]+)?\s*"
)
_LONGEST_HEADER = 400


class Harmony(ChatFormat):
    """`<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>`, after an analysis."""

    name = "harmony"
    tags = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
    signature = (" to=functions.", CHANNEL, MESSAGE, CALL)
    structured = True

    @classmethod
    def think_tags(cls, template: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
        return f"{CHANNEL}analysis{MESSAGE}", END

    def parser(self, tools: Sequence[ToolSchema] = (), opening: str | None = None) -> ReplyParser:
        return HarmonyParser(calls=bool(tools))

    def write(self, name: str, arguments: str) -> str:
        return f"{CHANNEL}commentary to=functions.{name} {CONSTRAIN}json{MESSAGE}{arguments}{CALL}"

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        # One call per turn: the model's turn ends with it, whatever `parallel` allows.
        channel, message, constrain = (grammar.marker(tag, self._vocabulary) for tag in (CHANNEL, MESSAGE, CONSTRAIN))
        bodies = [
            f"{grammar.text('commentary to=functions.' + tool['function']['name'] + ' ')} {constrain} "
            f"{grammar.text('json')} {message} {grammar.json_rule(grammar.parameters(tool))}"
            for tool in tools
        ]
        return f"answer: {channel} body\nbody: {grammar.any_of(bodies)}"

    def _before_json(self) -> str:
        channel, message = (grammar.marker(tag, self._vocabulary) for tag in (CHANNEL, MESSAGE))
        return f"{channel} {grammar.text('final')} {message}"

    def _after_thought(self, rules: str) -> str:
        start, channel, message, end = (grammar.marker(tag, self._vocabulary) for tag in (START, CHANNEL, MESSAGE, END))
        thought = f"thought: /(?s:.*)/ {end}" if END in self._vocabulary else r"thought[lazy]: /(?s:.*)<\|end\|>/"
        analysis = f"{channel} {grammar.text('analysis')} {message} thought {start} {grammar.text('assistant')}"
        return f"start: ({analysis})? answer\n{thought}\n{rules}"


class HarmonyParser:
    """A `ReplyParser` for the messages of one reply. Without `calls`, nothing is parsed as a call."""

    def __init__(self, *, calls: bool) -> None:
        self._calls, self._count = calls, 0
        self._tape = Tape()
        self._deltas: list[Delta] = []
        self._spoken: dict[str, bool] = {"content": False, "reasoning": False}
        self._run = self._reply()

    def feed(self, text: str) -> list[Delta]:
        self._tape.text += text
        return self._advance()

    def close(self) -> list[Delta]:
        self._tape.ended = True
        return self._advance()

    def _advance(self) -> list[Delta]:
        next(self._run, None)
        deltas, self._deltas = self._deltas, []
        return deltas

    def _reply(self) -> Wait[None]:
        tape, at, broken = self._tape, 0, False
        while True:
            while not tape.ended and any(one.startswith(tape.text[at:]) for one in _BEGINNINGS):
                yield
            if at >= len(tape.text):
                return
            if not tape.text.startswith(_BEGINNINGS, at):
                at = yield from self._text(at, "content", (START, CHANNEL), new=True)
                continue
            header, body = yield from self._header(at)
            if header is None:
                self._emit("content", tape.text[at:body], new=not broken, malformed=not broken)
                broken = True
                at = (
                    (yield from self._text(body, "content", (START, CHANNEL), new=False))
                    if body < len(tape.text)
                    else body
                )
                continue
            broken = False
            recipient, channel = header["before"] or header["after"], header["channel"]
            if recipient is None and channel in ("analysis", "commentary", "final"):
                field = "reasoning" if channel == "analysis" else "content"
                at = yield from self._text(body, field, (END, RETURN), new=True)
            else:
                is_call = self._calls and recipient is not None
                after = (yield from self._call(recipient or "", body)) if is_call else None
                if after is not None:
                    at = after
                    continue
                self._emit("content", tape.text[at:body], new=True, malformed=is_call)
                at = yield from self._text(body, "content", (END, CALL, RETURN), new=False)
            at = yield from self._end(at)

    def _header(self, at: int) -> Wait[tuple[re.Match[str] | None, int]]:
        """Return the header at `at` and the start of its body; or None and the end of the text that is no header."""
        tape = self._tape
        while True:
            place = tape.text.find(MESSAGE, at, at + _LONGEST_HEADER + len(MESSAGE))
            if place >= 0 or tape.ended or len(tape.text) > at + _LONGEST_HEADER:
                break
            yield
        match = _HEADER.fullmatch(tape.text, at, place) if place >= 0 else None
        if match:
            return match, place + len(MESSAGE)
        first = next(one for one in _BEGINNINGS if tape.text.startswith(one, at))
        return None, at + len(first)

    def _call(self, recipient: str, at: int) -> Wait[int | None]:
        """Emit the call whose arguments begin at `at`; return the end of its message, or None if it is no call."""
        tape = self._tape
        begun = yield from skip(tape, at)
        ended = yield from json_end(tape, begun)
        value = loads(tape.text[begun:ended]) if ended is not None else None
        kind, _, name = recipient.partition(".")
        call = called({"name": name, "arguments": value}) if kind == "functions" and isinstance(value, dict) else None
        if call is None or ended is None:
            return None
        end = yield from self._end((yield from skip(tape, ended)))
        if end <= ended and not (tape.ended and not tape.text[ended:].strip()):
            return None
        self._deltas.append(Delta(call=self._count, name=call.name, arguments=call.arguments))
        self._count += 1
        return end

    def _text(self, at: int, field: str, ends: tuple[str, ...], *, new: bool) -> Wait[int]:
        """Emit text up to one of `ends`; return the position of that marker."""
        tape = self._tape
        pattern = re.compile("|".join(map(re.escape, ends)))
        while True:
            match = pattern.search(tape.text, at)
            free = match.start() if match else len(tape.text) if tape.ended else before(tape.text, at, ends)
            if free > at:
                self._emit(field, tape.text[at:free], new=new)
                new = False
            if match or tape.ended:
                return free
            at = free
            yield

    def _end(self, at: int) -> Wait[int]:
        """Return the position after the end marker at `at`, if there is one."""
        for mark in (END, CALL, RETURN):
            after = yield from expect(self._tape, at, mark)
            if after is not None:
                return after
        return at

    def _emit(self, field: str, text: str, *, new: bool, malformed: bool = False) -> None:
        """Emit a piece of content or reasoning; a new message starts on its own line."""
        text = "\n" * (new and self._spoken[field]) + text
        self._spoken[field] = True
        if field == "content":
            self._deltas.append(Delta(content=text, malformed=malformed))
        else:
            self._deltas.append(Delta(reasoning=text))
