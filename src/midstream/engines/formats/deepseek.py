"""DeepSeek: each call between `<｜tool▁call▁begin｜>` and `<｜tool▁call▁end｜>`.

V3 and R1 write `function<｜tool▁sep｜>name` and the arguments in a fenced block, V3.1 `name<｜tool▁sep｜>arguments`:
https://huggingface.co/deepseek-ai/DeepSeek-V3.1. The form of V3.2 and later is not supported.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import NAME, Tape, Wait, called, expect, json_end, loads, skip
from midstream.engines.formats.reply import CalledTool

CALLS, CALL, SEPARATOR = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
CALL_END, CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
FENCE, FENCE_END = "```json", "```"


class DeepSeek(ChatFormat):
    """`<｜tool▁calls▁begin｜>`, the calls, `<｜tool▁calls▁end｜>`."""

    name = "deepseek"
    tags = (CALLS, CALL, SEPARATOR, CALL_END, CALLS_END)
    opener = re.compile(f"{CALLS}|{CALL}")
    starts = (CALLS, CALL)
    closers = (CALL_END, CALLS_END)
    signature = (CALL, SEPARATOR, CALL_END)

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        if tape.text.startswith(CALLS, at):
            at = yield from skip(tape, at + len(CALLS))
        begin = yield from expect(tape, at, CALL)
        name, at = yield from _named(tape, begin, SEPARATOR)
        fenced = name == "function" and not tape.text.startswith("{", at)
        if fenced:
            name, at = yield from _named(tape, at, FENCE)
        end = (yield from json_end(tape, at)) if name else None
        value = loads(tape.text[at:end]) if end else None
        call = called({"name": name, "arguments": value}) if isinstance(value, dict) else None
        if call is None or end is None:
            return None
        at = yield from skip(tape, end)
        if fenced:
            after = yield from expect(tape, at, FENCE_END, may_be_cut=True)
            if after is None:
                return None
            at = yield from skip(tape, after)
        ended = yield from expect(tape, at, CALL_END, may_be_cut=True)
        if ended is None:
            return None
        yield call
        closed = yield from expect(tape, (yield from skip(tape, ended)), CALLS_END, may_be_cut=True)
        return ended if closed is None else closed

    def write(self, name: str, arguments: str) -> str:
        return f"{CALLS}{CALL}{self._inside(name, arguments)}{CALL_END}{CALLS_END}"

    def instructions(self, tools: Sequence[str]) -> str:
        how = f"{CALLS}{CALL}{self._inside('tool_name', '{...}')}{CALL_END}{CALLS_END}"
        listed = "\n".join(tools)
        return f"## Tools\nYou have access to the following tools:\n\n{listed}\n\nTo call a tool, write:\n{how}"

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        calls, call, separator, end, calls_end = (grammar.marker(tag, self._vocabulary) for tag in self.tags)
        before = f"{grammar.text('function')} {separator}" if self._fenced() else ""
        between, close = (grammar.text(f"\n{FENCE}\n"), grammar.text(f"\n{FENCE_END}")) if before else (separator, "")
        bodies = [
            f"{before} {grammar.text(tool['function']['name'])} {between} "
            f"{grammar.json_rule(grammar.parameters(tool))} {close}"
            for tool in tools
        ]
        more = ('("\\n" call)*' if before else "call*") if parallel else ""
        return f"answer: {calls} call {more} {calls_end}\ncall: {call} body {end}\nbody: {grammar.any_of(bodies)}"

    def _fenced(self) -> bool:
        return FENCE in self.facts.source

    def _inside(self, name: str, arguments: str) -> str:
        if self._fenced():
            return f"function{SEPARATOR}{name}\n{FENCE}\n{arguments}\n{FENCE_END}"
        return f"{name}{SEPARATOR}{arguments}"


def _named(tape: Tape, begin: int | None, tag: str) -> Wait[tuple[str, int]]:
    """Return the name before `tag`, and the position after it; "" if there is none."""
    if begin is None:
        return "", 0
    begin = yield from skip(tape, begin)
    end = yield from skip(tape, begin, NAME)
    after = yield from expect(tape, (yield from skip(tape, end)), tag)
    return ("", end) if after is None else (tape.text[begin:end], (yield from skip(tape, after)))
