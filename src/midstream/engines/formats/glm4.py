"""GLM 4.5 to 5: a call's name and arguments as text in `<tool_call>` tags, with `<arg_key>` and `<arg_value>`.

GLM 4.5 and 4.6 write each tag on its own line, later versions use no line breaks. A string argument is bare text,
others are JSON: https://huggingface.co/zai-org/GLM-4.6 (chat template). The argument's declared type decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence

from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import NAME, Tape, Wait, called, expect, find, loads, skip
from midstream.engines.formats.reply import CalledTool
from midstream.engines.formats.typed_text import typed, value_rule

CALL, CALL_END = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class GLM4(ChatFormat):
    """`<tool_call>name\\n<arg_key>key</arg_key>\\n<arg_value>value</arg_value>\\n</tool_call>`, any number of times."""

    name = "glm4"
    tags = (CALL, CALL_END, KEY, KEY_END, VALUE, VALUE_END)
    opener = re.compile(CALL)
    starts = (CALL,)
    closers = (CALL_END,)
    signature = tags

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        begin = yield from skip(tape, at + len(CALL))
        end = yield from skip(tape, begin, NAME)
        name, arguments = tape.text[begin:end], {}
        schema = next((grammar.parameters(tool) for tool in tools if tool["function"]["name"] == name), {})
        at = yield from skip(tape, end)
        while (begun := (yield from expect(tape, at, KEY))) is not None:
            ended = yield from find(tape, begun, KEY_END)
            if ended is None:
                return None
            key = tape.text[begun:ended].strip()
            begun = yield from expect(tape, (yield from skip(tape, ended + len(KEY_END))), VALUE)
            ended = (yield from _value_end(tape, begun)) if begun is not None else None
            if ended is None or not key or "<" in key or key in arguments:
                return None
            arguments[key] = typed(tape.text[begun:ended], schema.get("properties", {}).get(key), schema)
            at = yield from skip(tape, ended + len(VALUE_END))
        closed = yield from expect(tape, at, CALL_END)
        call = called({"name": name, "arguments": arguments}) if closed is not None else None
        if call is not None:
            yield call
        return closed if call is not None else None

    def write(self, name: str, arguments: str) -> str:
        value = loads(arguments)
        given = value if isinstance(value, dict) else {}
        line = "" if self._compact() else "\n"
        pairs = (
            f"{KEY}{key}{KEY_END}{line}{VALUE}"
            f"{one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)}{VALUE_END}{line}"
            for key, one in given.items()
        )
        return f"{CALL}{name}{line}{''.join(pairs)}{CALL_END}"

    def instructions(self, tools: Sequence[str]) -> str:
        listed = "\n".join(tools)
        shown = self.write("{function-name}", json.dumps({"{arg-key-1}": "{arg-value-1}"}))
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{listed}\n</tools>\n\n"
            "For each function call, output the function name and arguments within the following XML format:\n" + shown
        )

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        call, call_end, key_begin, key_end, value_begin, _ = (
            grammar.marker(tag, self._vocabulary) for tag in self.tags
        )
        line = "" if self._compact() else grammar.text("\n")
        rules, bodies = [], []
        for number, tool in enumerate(tools):
            schema, parts = grammar.parameters(tool), []
            for place, (key, one) in enumerate(schema.get("properties", {}).items()):
                value = f"value_{number}_{place}"
                where = f"{tool['function']['name']}.{key}"
                rules.append(value_rule(value, one, schema, where, VALUE_END, self._vocabulary))
                part = f"{key_begin} {grammar.text(key)} {key_end} {line} {value_begin} {value} {line}"
                parts.append(part if key in schema.get("required", ()) else f"({part})?")
            bodies.append(f"{grammar.text(tool['function']['name'])} {line} {' '.join(parts)}")
        more = grammar.text("\n") if not self._compact() else ""
        first = [
            f"answer: call ({more} call)*" if parallel else "answer: call",
            f"call: {call} body {call_end}",
            f"body: {grammar.any_of(bodies)}",
        ]
        return "\n".join([*first, *rules])

    def _compact(self) -> bool:
        return f"{KEY_END}{VALUE}" in self.facts.source


def _value_end(tape: Tape, at: int) -> Wait[int | None]:
    """Return the end of a value: an end tag followed by the next argument or the end of the call, before which every
    tag is closed. So a value may contain such tags, and an unclosed value never runs into the next."""
    begun = at
    while True:
        end = yield from find(tape, at, VALUE_END)
        if end is None:
            return None
        at = end + len(VALUE_END)
        after = yield from skip(tape, at)
        closed = tape.text.count(VALUE, begun, end) <= tape.text.count(VALUE_END, begun, end)
        for tag in (KEY, CALL_END):
            if (yield from expect(tape, after, tag)) is not None and closed:
                return end
