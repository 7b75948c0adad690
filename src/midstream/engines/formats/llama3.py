"""Llama 3: a bare JSON object with `name` and `parameters`, or one after `<|python_tag|>`; several separated by `;`.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1. An object counts only at the start of a line. Code
for the built-in interpreter is content.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import Tape, called, json_end, loads, skip
from midstream.engines.formats.reply import CalledTool

PYTHON = "<|python_tag|>"

_ARGUMENTS = {"parameters", "arguments"}
_WORDS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {{"name": function name, "parameters": dictionary of argument '
    "name and its value}}. Do not use variables.\n\n{tools}"
)


class Llama3(ChatFormat):
    """`{"name": ..., "parameters": {...}}`."""

    name = "llama3"
    tags = (PYTHON,)
    opener = re.compile(r"<\|python_tag\|>|(?<![^\n])[ \t]*\{")
    starts = (PYTHON,)
    call_like = re.compile(r'<\|python_tag\|>|[ \t]*\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"(parameters|arguments)"\s*:')
    signature = ('"name"', '"parameters"')

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        ended = None
        while True:
            at = yield from skip(tape, at)
            if tape.text.startswith(PYTHON, at):
                at = yield from skip(tape, at + len(PYTHON))
            end = yield from json_end(tape, at)
            value = loads(tape.text[at:end]) if end else None
            call = called(value) if isinstance(value, dict) and _ARGUMENTS & set(value) else None
            if call is None or end is None:
                return ended
            yield call
            ended, at = end, (yield from skip(tape, end))
            if not tape.text.startswith(";", at):
                return ended
            at += 1

    def write(self, name: str, arguments: str) -> str:
        return f'{{"name": "{name}", "parameters": {arguments}}}'

    def instructions(self, tools: Sequence[str]) -> str:
        return _WORDS.format(tools="\n\n".join(tools))

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        one = grammar.any_of(grammar.call_rule(tool, "parameters") for tool in tools)
        return f"answer: call{' (`; ` call)*' if parallel else ''}\ncall: {one}".replace("`", '"')
