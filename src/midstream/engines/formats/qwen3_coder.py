"""Qwen3-Coder: `<function=...>` with a `<parameter=...>` for each argument, as text instead of JSON.

An argument's declared type decides: a string is unchanged, anything else is parsed as JSON if it fits.
https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct (chat template and qwen3coder_tool_parser.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence

from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import Tape, Wait, called, expect, find, loads, skip
from midstream.engines.formats.reply import CalledTool
from midstream.engines.formats.typed_text import typed, value_rule

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"

_NAME = re.compile(r"[^<>\n]+")


class Qwen3Coder(ChatFormat):
    """`<tool_call>\\n<function=name>\\n<parameter=key>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>`."""

    name = "qwen3_coder"
    tags = (CALL, CALL_END)
    opener = re.compile(f"{CALL}|{FUNCTION}")
    starts = (CALL, FUNCTION)
    closers = (CALL_END,)
    signature = (CALL, FUNCTION, PARAMETER, PARAMETER_END, FUNCTION_END, CALL_END)

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        wrapped = tape.text.startswith(CALL, at)
        if wrapped:
            at = yield from skip(tape, at + len(CALL))
        function = yield from _named(tape, at, FUNCTION)
        if function is None:
            return None
        (name, at), arguments = function, {}
        schema = next((grammar.parameters(tool) for tool in tools if tool["function"]["name"] == name), {})
        while True:
            at = yield from skip(tape, at)
            parameter = yield from _named(tape, at, PARAMETER)
            if parameter is None:
                break
            key, begin = parameter
            end = yield from _value_end(tape, begin)
            if end is None:
                return None
            value = tape.text[begin:end].removeprefix("\n").removesuffix("\n")
            arguments[key] = typed(value, schema.get("properties", {}).get(key), schema)
            at = end + len(PARAMETER_END)
        ended = yield from expect(tape, at, FUNCTION_END)
        if ended is not None and wrapped:
            ended = yield from expect(tape, (yield from skip(tape, ended)), CALL_END, may_be_cut=True)
        call = called({"name": name, "arguments": arguments})
        if ended is None or call is None:
            return None
        yield call
        return ended

    def write(self, name: str, arguments: str) -> str:
        value = loads(arguments)
        given = value if isinstance(value, dict) else {}
        texts = {
            key: one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for key, one in given.items()
        }
        lines = [f"{PARAMETER}{key}>\n{text}\n{PARAMETER_END}" for key, text in texts.items()]
        return "\n".join([CALL, f"{FUNCTION}{name}>", *lines, FUNCTION_END, CALL_END])

    def instructions(self, tools: Sequence[str]) -> str:
        listed = "\n".join(tools)
        shown = self.write("example_function_name", json.dumps({"example_parameter": "value"}))
        return (
            f"# Tools\n\nYou have access to the following functions:\n\n<tools>\n{listed}\n</tools>\n\n"
            f"If you choose to call a function ONLY reply in the following format with NO suffix:\n\n{shown}"
        )

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        begin, end = (grammar.marker(tag, self._vocabulary) for tag in self.tags)
        rules, bodies = [], []
        for number, tool in enumerate(tools):
            schema, parts = grammar.parameters(tool), []
            for place, (key, one) in enumerate(schema.get("properties", {}).items()):
                value = f"value_{number}_{place}"
                where = f"{tool['function']['name']}.{key}"
                rules.append(value_rule(value, one, schema, where, f"\n{PARAMETER_END}", self._vocabulary))
                part = f"{grammar.text(f'{PARAMETER}{key}>' + chr(10))} {value} {grammar.text(chr(10))}"
                parts.append(part if key in schema.get("required", ()) else f"({part})?")
            opened = grammar.text(f"{FUNCTION}{tool['function']['name']}>\n")
            bodies.append(f"{opened} {' '.join(parts)} {grammar.text(FUNCTION_END)}")
        first = [
            'answer: call ("\\n" call)*' if parallel else "answer: call",
            f'call: {begin} "\\n" body "\\n" {end}',
            f"body: {grammar.any_of(bodies)}",
        ]
        return "\n".join([*first, *rules])


def _named(tape: Tape, at: int, tag: str) -> Wait[tuple[str, int] | None]:
    """Return the name that `tag` gives at `at`, and the position after it."""
    begin = yield from expect(tape, at, tag)
    if begin is None:
        return None
    while True:
        match = _NAME.match(tape.text, begin)
        end = match.end() if match else begin
        if end < len(tape.text) or tape.ended:
            return (tape.text[begin:end], end + 1) if end > begin and tape.text.startswith(">", end) else None
        yield


def _value_end(tape: Tape, at: int) -> Wait[int | None]:
    """Return the end of a value: an end tag followed by the next parameter or the end of the call, before which every
    tag is closed. So a value may contain such tags, and an unclosed value never runs into the next."""
    begun = at
    while True:
        end = yield from find(tape, at, PARAMETER_END)
        if end is None:
            return None
        at = end + len(PARAMETER_END)
        after = yield from skip(tape, at)
        closed = tape.text.count(PARAMETER, begun, end) <= tape.text.count(PARAMETER_END, begun, end)
        for tag in (PARAMETER, FUNCTION_END):
            if (yield from expect(tape, after, tag)) is not None and closed:
                return end
