"""Mistral: `[TOOL_CALLS]` before a list of objects (7B v0.3, Nemo, Large) or before `name[ARGS]{...}` (Small 3.2 on).

https://github.com/mistralai/mistral-common, tokenizer versions 3 to 13.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from midstream.core.types import Message, ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat, Guard
from midstream.engines.formats.parsing import NAME, Tape, Wait, all_called, called, expect, json_end, loads, skip
from midstream.engines.formats.reply import CalledTool

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class Mistral(ChatFormat):
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{...}` once for each call."""

    name = "mistral"
    tags = (CALLS, ARGS, CALL_ID)
    opener = re.compile(re.escape(CALLS))
    starts = (CALLS,)
    signature = starts

    @classmethod
    def think_tags(cls, template: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
        # Magistral 2506 uses plain-text tags; later models have tokens for them.
        plain = "<think>" in template and "[THINK]" not in template
        return ("<think>", "</think>") if plain else ("[THINK]", "[/THINK]")

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        at = yield from skip(tape, at + len(CALLS))
        name = ""
        if tape.text[at : at + 1] not in ("[", "{"):
            name, at = yield from _name(tape, at)
            if not name:
                return None
        end = yield from json_end(tape, at)
        value = loads(tape.text[at:end]) if end else None
        if not name:
            calls = all_called(value)
        else:
            call = called({"name": name, "arguments": value}) if isinstance(value, dict) else None
            calls = [call] if call else []
        yield from calls
        return end if calls else None

    def write(self, name: str, arguments: str) -> str:
        if self._by_name():
            return f"{CALLS}{name}{ARGS}{arguments}"
        return f'{CALLS} [{{"name": "{name}", "arguments": {arguments}}}]'

    def instructions(self, tools: Sequence[str]) -> str:
        return f"[AVAILABLE_TOOLS] [{', '.join(tools)}][/AVAILABLE_TOOLS]"

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        begin, args, _ = (grammar.marker(tag, self._vocabulary) for tag in self.tags)
        if self._by_name():
            bodies = [
                f"{grammar.text(tool['function']['name'])} {args} {grammar.json_rule(grammar.parameters(tool))}"
                for tool in tools
            ]
            return f"answer: call{'+' if parallel else ''}\ncall: {begin} body\nbody: {grammar.any_of(bodies)}"
        one = grammar.any_of(grammar.call_rule(tool) for tool in tools)
        more = ' (", " call)*' if parallel else ""
        return f'answer: {begin} " [" call{more} "]"\ncall: {one}'

    def _assistant(self, message: Message, content: Any, guard: Guard) -> Message:
        more = super()._assistant(message, content, guard)
        thought = message.get("reasoning_content")
        if isinstance(thought, str) and thought and "'thinking'" in self.facts.source:  # it takes a thought as a part
            text = more.get("content", content)
            parts = [{"type": "text", "text": text}] if isinstance(text, str) and text else text or []
            more["content"] = [{"type": "thinking", "thinking": guard(thought)}, *parts]
        return more

    def call_id(self, given: str) -> str:
        # The templates reject ids of any other form.
        return given if len(given) == 9 and given.isalnum() else hashlib.sha256(given.encode()).hexdigest()[:9]

    def _by_name(self) -> bool:
        return ARGS in self.facts.source


def _name(tape: Tape, at: int) -> Wait[tuple[str, int]]:
    """Return a name and the position of its arguments; "" if there is none."""
    end = yield from skip(tape, at, NAME)
    name = tape.text[at:end]
    after = yield from expect(tape, end, CALL_ID)
    if after is not None:
        end = yield from skip(tape, after, NAME)
    after = yield from expect(tape, end, ARGS)
    at = yield from skip(tape, end if after is None else after)
    return (name, at) if tape.text.startswith("{", at) else ("", at)
