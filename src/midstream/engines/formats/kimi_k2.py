"""Kimi K2: JSON arguments after an id of the form `functions.name:index`, in a section of calls.

https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/docs/tool_call_guidance.md. The index counts the calls of
the whole conversation. Kimi K3 uses another form, which is not supported.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from midstream.core.types import Message, ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat, Guard, unguarded
from midstream.engines.formats.parsing import NAME, Tape, called, expect, find, json_end, loads, skip
from midstream.engines.formats.reply import CalledTool

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

_ID = re.compile(r"(?:functions\.)?([\w.-]+):\d+")


class KimiK2(ChatFormat):
    """`<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}<|tool_call_end|>`, in a section."""

    name = "kimi_k2"
    tags = (SECTION, CALL, ARGUMENTS, CALL_END, SECTION_END)
    opener = re.compile(f"{re.escape(SECTION)}|{re.escape(CALL)}")
    starts = (SECTION, CALL)
    closers = (CALL_END, SECTION_END)
    signature = tags
    structured = True

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        if tape.text.startswith(SECTION, at):
            at = yield from skip(tape, at + len(SECTION))
            if not tape.text.startswith("<", at):  # noise between the markers is content
                call_at = yield from find(tape, at, CALL)
                return None if call_at is None else at
            empty = yield from expect(tape, at, SECTION_END)
            if empty is not None:
                return empty
        begun = yield from expect(tape, at, CALL)
        if begun is None:
            return None
        begun = yield from skip(tape, begun)
        ended = yield from skip(tape, begun, NAME)
        named = _ID.fullmatch(tape.text, begun, ended)
        begun = yield from expect(tape, (yield from skip(tape, ended)), ARGUMENTS)
        begun = (yield from skip(tape, begun)) if begun is not None else None
        ended = (yield from json_end(tape, begun)) if begun is not None else None
        value = loads(tape.text[begun:ended]) if ended is not None else None
        call = called({"name": named[1], "arguments": value}) if named and isinstance(value, dict) else None
        if call is None or ended is None:
            return None
        closed = yield from expect(tape, (yield from skip(tape, ended)), CALL_END)
        if closed is not None:
            yield call
        return closed

    def messages(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], guard: Guard = unguarded
    ) -> list[Message]:
        # The model identifies calls by ids that contain their names, so client ids are replaced.
        ids, numbered = {}, []
        for message in messages:
            if message.get("tool_calls"):
                calls = []
                for call in message["tool_calls"]:
                    uid = f"functions.{call['function']['name']}:{len(ids)}"
                    ids[call.get("id") or uid] = uid
                    calls.append({**call, "id": uid})
                message = {**message, "tool_calls": calls}
            elif message.get("tool_call_id") in ids:
                message = {**message, "tool_call_id": ids[message["tool_call_id"]]}
            numbered.append(message)
        return super().messages(numbered, tools, guard)

    def write(self, name: str, arguments: str) -> str:
        return f"{SECTION}{CALL}functions.{name}:0{ARGUMENTS}{arguments}{CALL_END}{SECTION_END}"

    def instructions(self, tools: Sequence[str]) -> str:
        shown = self.write("tool_name", "{...}")
        listed = ", ".join(tools)
        return f"## Tools\nYou have access to the following tools:\n\n[{listed}]\n\nTo call a tool, write:\n{shown}"

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        section, call, arguments, call_end, section_end = (grammar.marker(tag, self._vocabulary) for tag in self.tags)
        bodies = [
            f"{grammar.text('functions.' + tool['function']['name'] + ':')} /[0-9]+/ {arguments} "
            f"{grammar.json_rule(grammar.parameters(tool))}"
            for tool in tools
        ]
        return (
            f"answer: {section} call{'+' if parallel else ''} {section_end}\n"
            f"call: {call} body {call_end}\nbody: {grammar.any_of(bodies)}"
        )
