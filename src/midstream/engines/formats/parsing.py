"""Parses a reply while it streams: thoughts, content and calls, independent of how the stream is cut.

Parsers are generators over a `Tape`: they yield None to wait for more text, so nothing is parsed twice. A call is
emitted once it is complete, because its text may turn out to be content until then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from midstream.engines.formats.reply import CalledTool, Delta

THINK, THINK_END = "<think>", "</think>"

_SPACE = re.compile(r"\s*")
NAME = re.compile(r"[\w.:/-]*")
"""A tool name written without quotes."""
_NEWLINES = re.compile(r"\n*")
_STRUCTURE = re.compile(r'["{}\[\]]')
_DEEPEST = 100
"""Maximum nesting in a call's JSON. Without a limit, a reply of brackets would take quadratic time."""
_MOST_MALFORMED = 100
"""After this many malformed calls the rest of a reply is content, because each may be scanned to the reply's end."""
_IN_STRING = re.compile(r'["\\\x00-\x1f]')


@dataclass
class Tape:
    """The text of a reply so far, and whether it is complete."""

    text: str = ""
    ended: bool = False


T = TypeVar("T")
Wait = Generator[None, None, T]
"""A parser that yields to wait for more text, and returns its result."""
CallParser = Callable[[Tape, int], Generator[CalledTool | None, None, int | None]]
"""Parses calls from a position: yields each call, or None to wait; returns their end, or None for no call."""


def skip(tape: Tape, at: int, what: re.Pattern[str] = _SPACE) -> Wait[int]:
    """Return the first position from `at` on that does not match `what`; the end if there is none."""
    while True:
        match = what.match(tape.text, at)
        at = match.end() if match else at
        if at < len(tape.text) or tape.ended:
            return at
        yield


def expect(tape: Tape, at: int, word: str, *, may_be_cut: bool = False) -> Wait[int | None]:
    """Return the position after `word` at `at`, or None. `may_be_cut` also accepts a reply that ends within `word`."""
    while not tape.ended and len(tape.text) < at + len(word) and word.startswith(tape.text[at:]):
        yield
    if tape.text.startswith(word, at):
        return at + len(word)
    return len(tape.text) if may_be_cut and tape.ended and word.startswith(tape.text[at:]) else None


def find(tape: Tape, at: int, word: str) -> Wait[int | None]:
    """Return the next position of `word`; None if the reply ends without it."""
    while True:
        place = tape.text.find(word, at)
        if place >= 0 or tape.ended:
            return place if place >= 0 else None
        at = max(at, len(tape.text) - len(word) + 1)
        yield


def json_end(tape: Tape, at: int) -> Wait[int | None]:
    """Return the position after the JSON object or array that begins at `at`; None if there is none."""
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
            return None  # a control character, invalid in a JSON string


def loads(text: str) -> Any:
    """Return `text` parsed as JSON; None if invalid. NaN and Infinity are invalid."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def as_json(value: Any) -> str | None:
    """Return `value` as JSON text without lone surrogates; None if it cannot be written as JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text if text.isascii() or _encodes(text) else json.dumps(value)
    except (ValueError, RecursionError):
        return None


def called(value: Any) -> CalledTool | None:
    """Return the call in `{"name": ..., "arguments" or "parameters": {...}}`; None for anything else."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # JSON encoded as a JSON string
        arguments = loads(arguments)
        if arguments is None:
            return None
    text = as_json({} if arguments is None else arguments)
    if not isinstance(name, str) or not name or not _encodes(name) or not isinstance(arguments, dict | None):
        return None
    return CalledTool(name, text) if text is not None else None


def all_called(value: Any) -> list[CalledTool]:
    """Return the calls in an object or a list of objects; empty unless every item is a call."""
    calls = [called(one) for one in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


class StreamParser:
    """A `ReplyParser` for formats that write a thought, then content that contains calls.

    `parse_call` runs where `opener` matches. `starts` are the markers that begin a call: a partial marker at the end of
    the text is held back. Text that cannot be parsed as a call is content, and counts as a malformed call if
    `call_like` matches it. `closers` are end markers, removed after a call. `think` are the tags around a thought, None
    for a model without thoughts; `opened` means the prompt already contains the first.

    White space around calls belongs to the format; it is kept only between content before and after the calls."""

    def __init__(
        self,
        opener: re.Pattern[str] | None,
        starts: tuple[str, ...],
        parse_call: CallParser,
        *,
        call_like: re.Pattern[str],
        closers: tuple[str, ...] = (),
        think: tuple[str, str] | None = None,
        opened: bool = False,
    ) -> None:
        self._opener, self._starts, self._parse_call, self._closers = opener, starts, parse_call, closers
        self._call_like, self._think, self._opened = call_like, think, opened
        self._tape = Tape()
        self._deltas: list[Delta] = []
        self._content, self._gap, self._count, self._malformed = False, "", 0, 0
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
        at = (yield from self._thought(*self._think)) if self._think else 0
        tape = self._tape
        while True:
            match = self._opener.search(tape.text, at) if self._opener else None
            if match:
                content = tape.text[at : match.start()].rstrip()
                self._emit_content(content)
                space = tape.text[at + len(content) : match.start()]
                end = yield from self._calls(match.start(), space)
                if end is None:
                    malformed = self._call_like.match(tape.text, match.start()) is not None
                    self._emit_content(space + match.group(), malformed=malformed)
                    self._malformed += malformed
                    if self._malformed == _MOST_MALFORMED:
                        self._opener = None
                    at = match.end()
                else:
                    at = yield from self._after_calls(end)
                    self._gap = self._gap or "".join(filter(str.isspace, tape.text[end:at]))
            elif tape.ended:
                self._emit_content(tape.text[at:])
                return
            else:
                free = self._free(at)
                self._emit_content(tape.text[at:free])
                at = free
                yield

    def _thought(self, begin: str, close: str) -> Wait[int]:
        """Emit the thought at the start of the reply; return the start of the answer."""
        tape = self._tape
        begun = yield from expect(tape, (yield from skip(tape, 0)), begin)
        if begun is None and not self._opened:
            return 0
        at = yield from skip(tape, begun or 0, _NEWLINES)
        while True:
            end = tape.text.find(close, at)
            free = end if end >= 0 else len(tape.text) if tape.ended else before(tape.text, at, (close,))
            thought = tape.text[at:free].rstrip("\n")
            if thought:
                self._deltas.append(Delta(reasoning=thought))
            if end >= 0:
                return (yield from skip(tape, end + len(close), _NEWLINES))
            if tape.ended:
                return len(tape.text)
            at += len(thought)
            yield

    def _calls(self, start: int, space: str) -> Wait[int | None]:
        calls = self._parse_call(self._tape, start)
        while True:
            try:
                call = next(calls)
            except StopIteration as stop:
                return stop.value
            if call is None:
                yield
                continue
            self._gap = self._gap or (space if self._content else "")
            self._deltas.append(Delta(call=self._count, name=call.name, arguments=call.arguments))
            self._count += 1

    def _after_calls(self, at: int) -> Wait[int]:
        """Return the position after white space and end markers that follow a call."""
        while True:
            at = yield from skip(self._tape, at)
            for closer in self._closers:
                after = yield from expect(self._tape, at, closer, may_be_cut=True)
                if after is not None and after > at:
                    at = after
                    break
            else:
                return at

    def _emit_content(self, text: str, *, malformed: bool = False) -> None:
        if text:
            content = self._gap + text if self._content else text
            self._deltas.append(Delta(content=content, malformed=malformed))
            self._content, self._gap = True, ""

    def _free(self, at: int) -> int:
        """Return the end of the text that is content in any case: before a possible marker and white space before
        it."""
        if self._opener is None:
            return len(self._tape.text)
        return at + len(self._tape.text[at : before(self._tape.text, at, self._starts)].rstrip())


def before(text: str, at: int, words: tuple[str, ...]) -> int:
    """Return where a prefix of one of `words` ends `text`, from `at` on; the end of `text` if none does."""
    longest = max(map(len, words), default=1) - 1
    for place in range(max(at, len(text) - longest), len(text)):
        if any(word.startswith(text[place:]) for word in words):
            return place
    return len(text)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _encodes(text: str) -> bool:
    """Whether `text` has no lone surrogates, which cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_DECODER = json.JSONDecoder(parse_constant=_refuse)
