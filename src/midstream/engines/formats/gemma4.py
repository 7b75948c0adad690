"""Gemma 4: `<|tool_call>call:name{key:value}<tool_call|>`, an object notation with strings between `<|"|>`.

https://ai.google.dev/gemma/docs/core/function-calling; a thought is `<|channel>thought ... <channel|>`. Gemma 3
and earlier have no notation of their own: their templates do not support tools.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from midstream.core.errors import Unsupported
from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.parsing import NAME, Tape, Wait, as_json, called, expect, loads, skip
from midstream.engines.formats.reply import CalledTool
from midstream.engines.formats.typed_text import json_types

CALL, CALL_END, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
RESULT = "<|tool_response>"

_DEEPEST = 50
_SIGN = re.compile(r'<\|"\|>|[{}\[\]]')
_KEY = re.compile(r"\s*(?:<\|\"\|>(?P<quoted>.*?)<\|\"\|>|(?P<bare>[^:{}\[\],]*?))\s*:\s*", re.DOTALL)
_BARE = re.compile(r"[^,{}\[\]]*")
_COMMA = re.compile(r"\s*,\s*")


class Gemma4(ChatFormat):
    """`<|tool_call>call:name{city:<|"|>Paris<|"|>,days:3}<tool_call|>`, any number of times."""

    name = "gemma4"
    tags = (CALL, CALL_END, QUOTE)
    opener = re.compile(re.escape(CALL))
    starts = (CALL,)
    # The model stops at the marker of a result, which is not part of its reply.
    closers = (CALL_END, RESULT)
    structured = True
    signature = (CALL, "call:", QUOTE, CALL_END)

    @classmethod
    def think_tags(cls, template: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
        return "<|channel>thought\n", "<channel|>"

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        begun = yield from expect(tape, at + len(CALL), "call:")
        if begun is None:
            return None
        ended = yield from skip(tape, begun, NAME)
        end = yield from _object_end(tape, ended)
        value, read = _value(tape.text[ended:end], 0) if end is not None else (None, -1)
        call = called({"name": tape.text[begun:ended], "arguments": value}) if isinstance(value, dict) else None
        if call is None or end is None or ended + read != end:
            return None
        closed = yield from expect(tape, (yield from skip(tape, end)), CALL_END)
        if closed is not None:
            yield call
        return closed

    def write(self, name: str, arguments: str) -> str:
        value = loads(arguments)
        return f"{CALL}call:{name}{_notation(value if isinstance(value, dict) else {})}{CALL_END}"

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        call, call_end, quote = (grammar.marker(tag, self._vocabulary) for tag in self.tags)
        rules, bodies = [], []
        for number, tool in enumerate(tools):
            schema, parts = grammar.parameters(tool), []
            required = set(schema.get("required", ()))
            # Commas need no special handling only if the required arguments come first.
            properties = sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in required)
            for place, (key, one) in enumerate(properties):
                name = f"value_{number}_{place}"
                where = f"{tool['function']['name']}.{key}"
                rules.append(_value_rule(name, one, schema, where, quote, QUOTE in self._vocabulary))
                part = f"{grammar.text(f'{key}:')} {name}"
                parts.append((part, key in required))
            bodies.append(
                f"{grammar.text('call:' + tool['function']['name'] + '{')} {_separated(parts)} {grammar.text('}')}"
            )
        first = [
            f"answer: call{'+' if parallel else ''}",
            f"call: {call} body {call_end}",
            f"body: {grammar.any_of(bodies)}",
        ]
        return "\n".join([*first, *rules])


def _object_end(tape: Tape, at: int) -> Wait[int | None]:
    """Return the position after the object that begins at `at`; None if there is none."""
    if not tape.text.startswith("{", at):
        return None
    depth = 0
    while True:
        match = _SIGN.search(tape.text, at)
        if match is None:
            if tape.ended:
                return None
            at = max(at, len(tape.text) - len(QUOTE) + 1)
            yield
            continue
        sign, at = match.group(), match.end()
        if sign == QUOTE:
            while (end := tape.text.find(QUOTE, at)) < 0:
                if tape.ended:
                    return None
                yield
            at = end + len(QUOTE)
        else:
            depth += 1 if sign in "{[" else -1
            if depth > _DEEPEST:
                return None
            if depth == 0:
                return at


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return the value at `at` and the position after it; -1 if there is none."""
    if text.startswith(QUOTE, at):
        end = text.find(QUOTE, at + len(QUOTE))
        return (text[at + len(QUOTE) : end], end + len(QUOTE)) if end >= 0 else (None, -1)
    if text.startswith(("{", "["), at):
        return _members(text, at)
    bare = _BARE.match(text, at)
    word = bare.group().strip() if bare else ""
    value = loads(word)
    known = word == "null" or (value is not None and not isinstance(value, str))
    return (value, bare.end()) if known and bare else (None, -1)


def _members(text: str, at: int) -> tuple[Any, int]:
    """Return the object or array that begins at `at` and the position after it; -1 if there is none."""
    is_object = text[at] == "{"
    close, found, items = ("}", {}, []) if is_object else ("]", {}, [])
    at = _space_end(text, at + 1)
    while not text.startswith(close, at):
        key = _KEY.match(text, at) if is_object else None
        name = "" if key is None else key["quoted"] if key["quoted"] is not None else key["bare"].strip()
        if is_object and (key is None or not name or name in found):
            return None, -1
        value, at = _value(text, at if key is None else key.end())
        if at < 0:
            return None, -1
        found[name] = value
        items.append(value)
        comma = _COMMA.match(text, at)
        at = comma.end() if comma else _space_end(text, at)
        if not comma and not text.startswith(close, at):
            return None, -1
    return (found if is_object else items), at + 1


def _space_end(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _notation(value: Any) -> str:
    """Return `value` in the model's notation, keys in the order templates sort them."""
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, dict):
        members = sorted(value.items(), key=lambda item: item[0].lower())
        return f"{{{','.join(f'{key}:{_notation(one)}' for key, one in members)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_notation, value))}]"
    return as_json(value) or "null"


def _separated(parts: Sequence[tuple[str, bool]]) -> str:
    """Return the grammar of `parts`, (rule, required), separated by commas."""
    comma = grammar.text(",")
    required = [rule for rule, must in parts if must]
    optional = [rule for rule, must in parts if not must]
    if required:
        return " ".join([f" {comma} ".join(required), *(f"({comma} {rule})?" for rule in optional)])
    chains = [
        " ".join([rule, *(f"({comma} {later})?" for later in optional[place + 1 :])])
        for place, rule in enumerate(optional)
    ]
    return f"({grammar.any_of(chains)})?" if chains else ""


def _value_rule(name: str, schema: Any, root: Any, where: str, quote: str, quote_is_token: bool) -> str:
    """Return a grammar rule for one argument; only strings, numbers, booleans and null can be enforced."""
    kinds = json_types(schema, root)
    unheld = {"pattern", "format", "$ref", "properties", "items"} & set(schema)
    if unheld or not kinds or kinds & {"object", "array"}:
        what = f"'{min(unheld)}' of the" if unheld else "the type of the"
        raise Unsupported(f"tool_choice: {what} parameter {where} cannot be enforced in this format")
    if "string" not in kinds:
        return f"{name}: {grammar.json_rule(schema)}"
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices:
        words = (one for one in choices if isinstance(one, str))
        return f"{name}: {quote} ({' | '.join(map(grammar.text, words))}) {quote}"
    value = f"(?s:.){{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"
    if quote_is_token:
        return f"{name}: {quote} /{value}/ {quote}"
    return f'{name}: {quote} {name}_rest\n{name}_rest[lazy]: /{value}<\\|"\\|>/'
