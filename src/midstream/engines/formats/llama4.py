"""Llama 4: calls as a Python list, `[name(key="value"), other()]`, with or without `<|python_start|>` around it.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama4. Argument values are Python literals; JSON's `true`,
`false` and `null` are also accepted. A list counts only at the start of a line. Llama 4 templates that ask for JSON
objects have the format `llama3`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Generator, Sequence
from typing import Any

from midstream.core.errors import Unsupported
from midstream.core.types import ToolSchema
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import Tape, Wait, called, expect, loads, skip
from midstream.engines.formats.reply import CalledTool

PYTHON, PYTHON_END = "<|python_start|>", "<|python_end|>"

_DEEPEST = 50
_TOKEN = re.compile(r"""[\[\](){}]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|["']""", re.DOTALL)
_HEAD = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_MAY_BE_CALL = re.compile(r"\[\s*(?:[A-Za-z_][\w.-]*\s*)?")
_KEY = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_PAIRS = {"]": "[", ")": "(", "}": "{"}
_JSON_WORDS = {"true": True, "false": False, "null": None}


class Llama4(ChatFormat):
    """`[name(key="value")]`."""

    name = "llama4"
    tags = (PYTHON, PYTHON_END)
    opener = re.compile(r"<\|python_start\|>|(?<![^\n])[ \t]*\[")
    starts = (PYTHON,)
    closers = (PYTHON_END,)
    call_like = re.compile(r"<\|python_start\|>|[ \t]*\[\s*[A-Za-z_][\w.-]*\(")
    signature = ("[", "(", ")", "]")

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        at = yield from skip(tape, at)
        if tape.text.startswith(PYTHON, at):
            at = yield from skip(tape, at + len(PYTHON))
        end = yield from _list_end(tape, at)
        calls = _calls(tape.text[at + 1 : end - 1]) if end is not None else []
        if not calls or end is None:
            return None
        yield from calls
        closed = yield from expect(tape, end, PYTHON_END, may_be_cut=True)
        return end if closed is None else closed

    def write(self, name: str, arguments: str) -> str:
        value = loads(arguments)
        given = value if isinstance(value, dict) else {}
        if any(not key.isidentifier() for key in given):
            raise Unsupported(f"a call of '{name}': this model only supports arguments with Python names")
        return f"[{name}({', '.join(f'{key}={_literal(one)}' for key, one in given.items())})]"

    def instructions(self, tools: Sequence[str]) -> str:
        return (
            "You can call functions. Respond with only a list of calls, in the exact format "
            "[func_name1(param1=value1, param2=value2), func_name2(...)].\n"
            "Here is a list of functions in JSON format that you can invoke:\n" + "\n".join(tools)
        )

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        raise Unsupported("tool_choice: a call in the Python notation of Llama 4 cannot be enforced")


def _list_end(tape: Tape, at: int) -> Wait[int | None]:
    """Return the position after the bracketed list that begins at `at`; None if there is none."""
    if at >= len(tape.text) or tape.text[at] != "[":
        return None
    while not tape.ended and _MAY_BE_CALL.fullmatch(tape.text, at):
        yield
    if not _HEAD.match(tape.text, at + 1):
        return None
    opened: list[str] = []
    while True:
        match = _TOKEN.search(tape.text, at)
        if match is None or match.group() in ('"', "'"):  # an unterminated string
            if tape.ended:
                return None
            at = len(tape.text) if match is None else match.start()
            yield
            continue
        sign, at = match.group(), match.end()
        if sign in "[({":
            opened.append(sign)
            if len(opened) > _DEEPEST:
                return None
        elif sign in _PAIRS:
            if not opened or opened.pop() != _PAIRS[sign]:
                return None
            if not opened:
                return at


def _calls(text: str) -> list[CalledTool]:
    """Return the calls in `text`, `name(key=value), name(...)`; empty unless all of it is calls."""
    calls: list[CalledTool] = []
    at = 0
    while True:
        head = _HEAD.match(text, at)
        if head is None:
            return []
        arguments, at = {}, head.end()
        while key := _KEY.match(text, at):
            end = _value_end(text, key.end())
            value, known = _value(text[key.end() : end].strip())
            if not known or key[1] in arguments:
                return []
            arguments[key[1]] = value
            at = end + text.startswith(",", end)
        closed = re.compile(r"\s*\)\s*").match(text, at)
        call = called({"name": head[1], "arguments": arguments}) if closed else None
        if call is None or closed is None:
            return []
        calls.append(call)
        at = closed.end()
        if at == len(text):
            return calls
        if text[at] != ",":
            return []
        at += 1


def _value_end(text: str, at: int) -> int:
    """Return the end of the value that begins at `at`: the comma or bracket after it."""
    depth = 0
    for match in re.compile(_TOKEN.pattern + "|,", re.DOTALL).finditer(text, at):
        sign = match.group()
        if depth == 0 and sign in (",", ")"):
            return match.start()
        depth += (sign in ("[", "(", "{")) - (sign in _PAIRS)
    return len(text)


def _value(text: str) -> tuple[Any, bool]:
    """Return the literal in `text`, and whether it is one."""
    if text in _JSON_WORDS:
        return _JSON_WORDS[text], True
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = loads(text)
        return value, value is not None
    return value, isinstance(value, str | int | float | bool | list | dict | None)


def _literal(value: Any) -> str:
    """Return `value` as a Python literal with double quotes, as templates write it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(one)}' for key, one in value.items())}}}"
    return repr(value)
