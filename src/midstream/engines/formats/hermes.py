"""Hermes: JSON in `<tool_call>` tags. Qwen 2.5, Qwen 3, Hermes 2 and 3, SmolLM2 and most others.

https://github.com/NousResearch/Hermes-Function-Calling; the list form is that of SmolLM2's model card.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import Tape, all_called, expect, json_end, loads, skip
from midstream.engines.formats.reply import CalledTool

CALL, CALL_END = "<tool_call>", "</tool_call>"

_WORDS = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "You may call one or more functions to assist with the user query. Don't make assumptions about what values to "
    "plug into functions. Here are the available tools: <tools> {tools} </tools> Use the following pydantic model json "
    'schema for each tool call you will make: {{"properties": {{"name": {{"title": "Name", "type": "string"}}, '
    '"arguments": {{"title": "Arguments", "type": "object"}}}}, "required": ["name", "arguments"], '
    '"title": "FunctionCall", "type": "object"}}\nFor each function call return a json object with function name and '
    "arguments within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-dict>}}\n</tool_call>'
)


class Hermes(ChatFormat):
    """`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`, any number of times."""

    name = "hermes"
    tags = (CALL, CALL_END)
    opener = re.compile(CALL)
    starts = (CALL,)
    closers = (CALL_END,)
    signature = tags

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        begin = yield from skip(tape, at + len(CALL))
        end = yield from json_end(tape, begin)
        calls = all_called(loads(tape.text[begin:end])) if end else []
        if not calls or end is None:
            return None
        after = yield from expect(tape, (yield from skip(tape, end)), CALL_END, may_be_cut=True)
        if after is not None:
            yield from calls
        return after

    def write(self, name: str, arguments: str) -> str:
        return f'{CALL}\n{{"name": "{name}", "arguments": {arguments}}}\n{CALL_END}'

    def instructions(self, tools: Sequence[str]) -> str:
        return _WORDS.format(tools="\n".join(tools))

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        begin, end = (grammar.marker(tag, self._vocabulary) for tag in self.tags)
        return "\n".join(
            [
                'answer: call ("\\n" call)*' if parallel else "answer: call",
                f'call: {begin} "\\n" body "\\n" {end}',
                f"body: {grammar.any_of(grammar.call_rule(tool) for tool in tools)}",
            ]
        )
