"""Reads a reply while it is written: thoughts, content and calls, the same for any cutting into pieces.

Parsers are generators over a `Tape`: they yield None where they need more of the reply, and so never start again. A
call is handed on once it is whole: before, nothing can tell whether its text will be one, or stays content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from midstream.engines.formats.base import CalledTool, Delta

THINK, THOUGHT = "<think>", "</think>"

_SPACE = re.compile(r"\s*")
NAME = re.compile(r"[\w.:/-]*")
"""What tools may be called, where no quotes are round it."""
_NEWLINES = re.compile(r"\n*")
_STRUCTURE = re.compile(r'["{}\[\]]')
_DEEPEST = 100
"""How deep the JSON of a call may be nested. Without a limit, a reply of brackets would be read once for each."""
_IN_STRING = re.compile(r'["\\\x00-\x1f]')


@dataclass
class Tape:
    """A reply so far."""

    text: str = ""
    ended: bool = False


T = TypeVar("T")
Wait = Generator[None, None, T]
"""A parser that yields where it needs more of the tape, and returns its result."""
CallParser = Callable[[Tape, int], Generator[CalledTool | None, None, int | None]]
"""Reads calls from a place on the tape: yields each, or None to wait; returns where they end, or None for no call."""


def skip(tape: Tape, at: int, what: re.Pattern[str] = _SPACE) -> Wait[int]:
    """The first place from `at` on that is not `what`; the end when there is none."""
    while True:
        match = what.match(tape.text, at)
        at = match.end() if match else at
        if at < len(tape.text) or tape.ended:
            return at
        yield


def expect(tape: Tape, at: int, word: str, *, may_be_cut: bool = False) -> Wait[int | None]:
    """The place after `word` when it stands at `at`. With `may_be_cut`, a reply that ends within it will do."""
    while not tape.ended and len(tape.text) < at + len(word) and word.startswith(tape.text[at:]):
        yield
    if tape.text.startswith(word, at):
        return at + len(word)
    return len(tape.text) if may_be_cut and tape.ended and word.startswith(tape.text[at:]) else None


def find(tape: Tape, at: int, word: str) -> Wait[int | None]:
    """Where `word` next stands; None when the reply ends without."""
    while True:
        place = tape.text.find(word, at)
        if place >= 0 or tape.ended:
            return place if place >= 0 else None
        at = max(at, len(tape.text) - len(word) + 1)
        yield


def json_end(tape: Tape, at: int) -> Wait[int | None]:
    """The place after the JSON object or array that begins at `at`; None when there is none."""
    if at >= len(tape.text) or tape.text[at] not in "{[":
        return None
    depth, quoted = 0, False
    while True:
        match = (_IN_STRING if quoted else _STRUCTURE).search(tape.text, at)
        if match is None:
            if tape.ended:
                return None
            at = max(at, len(tape.text))
            yield
            continue
        sign, at = match.group(), match.end()
        if sign == '"':
            quoted = not quoted
        elif sign == "\\":
            at += 1
        elif sign in "{[":
            depth += 1
            if sign == "{":
                at = yield from skip(tape, at)
            if depth > _DEEPEST or (sign == "{" and tape.text[at : at + 1] not in ('"', "}", "")):
                return None
        elif sign in "}]":
            depth -= 1
            if depth == 0:
                return at
        else:
            return None  # a control character, which no JSON string holds


def loads(text: str) -> Any:
    """The JSON value `text` is, or None. NaN and Infinity are no JSON."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def as_json(value: Any) -> str | None:
    """`value` as JSON text that can be encoded; None when it has none."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text if text.isascii() or _encodes(text) else json.dumps(value)
    except (ValueError, RecursionError):
        return None


def called(value: Any) -> CalledTool | None:
    """The call that `{"name": ..., "arguments" or "parameters": {...}}` is; None for anything else."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # written as JSON in JSON
        arguments = loads(arguments)
        if arguments is None:
            return None
    text = as_json({} if arguments is None else arguments)
    if not isinstance(name, str) or not name or not _encodes(name) or not isinstance(arguments, dict | None):
        return None
    return CalledTool(name, text) if text is not None else None


def all_called(value: Any) -> list[CalledTool]:
    """The calls that an object or a list of objects is; none unless all are calls."""
    calls = [called(one) for one in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


class Reader:
    """A `ReplyReader` of one family. `calls` begin where `opener` matches; `starts` are the texts it can begin with, so
    that no piece of one is taken for content. `opened` says that the prompt itself began a thought.

    White space that touches a call is part of how calls are written, and no content: it is kept only between what was
    said before the calls and what is said after them."""

    def __init__(
        self, opener: re.Pattern[str] | None, starts: tuple[str, ...], calls: CallParser, *, thinks: bool, opened: bool
    ) -> None:
        self._opener, self._starts, self._calls = opener, starts, calls
        self._thinks, self._opened = thinks, opened
        self._tape = Tape()
        self._deltas: list[Delta] = []
        self._said, self._gap, self._count = False, "", 0
        self._run = self._reply()

    def feed(self, text: str) -> list[Delta]:
        self._tape.text += text
        return self._go_on()

    def close(self) -> list[Delta]:
        self._tape.ended = True
        return self._go_on()

    def _go_on(self) -> list[Delta]:
        next(self._run, None)
        deltas, self._deltas = self._deltas, []
        return deltas

    def _reply(self) -> Wait[None]:
        at = (yield from self._thought()) if self._thinks else 0
        tape = self._tape
        while True:
            match = self._opener.search(tape.text, at) if self._opener else None
            if match:
                said = tape.text[at : match.start()].rstrip()
                self._say(said)
                space = tape.text[at + len(said) : match.start()]
                end = yield from self._call(match.start(), space)
                if end is None:
                    self._say(space + match.group())
                    at = match.end()
                else:
                    at = yield from skip(tape, end)
                    self._gap = self._gap or tape.text[end:at]
            elif tape.ended:
                self._say(tape.text[at:])
                return
            else:
                free = self._free(at)
                self._say(tape.text[at:free])
                at = free
                yield

    def _thought(self) -> Wait[int]:
        """Hand on what stands in `<think>`; returns where the answer begins."""
        tape = self._tape
        begun = yield from expect(tape, (yield from skip(tape, 0)), THINK)
        if begun is None and not self._opened:
            return 0
        at = yield from skip(tape, begun or 0, _NEWLINES)
        while True:
            end = tape.text.find(THOUGHT, at)
            free = end if end >= 0 else len(tape.text) if tape.ended else _before(tape.text, at, (THOUGHT,))
            thought = tape.text[at:free].rstrip("\n")
            if thought:
                self._deltas.append(Delta(reasoning=thought))
            if end >= 0:
                return (yield from skip(tape, end + len(THOUGHT), _NEWLINES))
            if tape.ended:
                return len(tape.text)
            at += len(thought)
            yield

    def _call(self, start: int, space: str) -> Wait[int | None]:
        calls = self._calls(self._tape, start)
        while True:
            try:
                call = next(calls)
            except StopIteration as stop:
                return stop.value
            if call is None:
                yield
                continue
            self._gap = self._gap or (space if self._said else "")
            self._deltas.append(Delta(call=self._count, name=call.name, arguments=call.arguments))
            self._count += 1

    def _say(self, text: str) -> None:
        if text:
            self._deltas.append(Delta(content=self._gap + text if self._said else text))
            self._said, self._gap = True, ""

    def _free(self, at: int) -> int:
        """Up to where the tape is content, whatever comes: before a beginning of an opener and the space it follows."""
        if self._opener is None:
            return len(self._tape.text)
        return at + len(self._tape.text[at : _before(self._tape.text, at, self._starts)].rstrip())


def _before(text: str, at: int, words: tuple[str, ...]) -> int:
    """The place before the beginning of one of `words` that `text` may end with; its end when it does not."""
    longest = max(map(len, words), default=1) - 1
    for place in range(max(at, len(text) - longest), len(text)):
        if any(word.startswith(text[place:]) for word in words):
            return place
    return len(text)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _encodes(text: str) -> bool:
    """Whether `text` is free of the halves of surrogate pairs, which no encoding carries."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_DECODER = json.JSONDecoder(parse_constant=_refuse)
