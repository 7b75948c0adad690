"""Qwen3-Coder: `<function=...>` with a `<parameter=...>` for each argument, as text rather than as JSON.

What type an argument has, its declaration says: a text stays as it stands, anything else is read as JSON where it fits.
https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct (chat template and qwen3coder_tool_parser.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from midstream.core.errors import Unsupported
from midstream.core.types import ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.base import CalledTool
from midstream.engines.formats.family import Family
from midstream.engines.formats.reading import Tape, Wait, called, expect, find, loads, skip

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"

_NAME = re.compile(r"[^<>\n]+")
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


class Qwen3Coder(Family):
    """`<tool_call>\\n<function=name>\\n<parameter=key>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>`."""

    name = "qwen3_coder"
    tags = (CALL, CALL_END)
    opener = re.compile(f"{CALL}|{FUNCTION}")
    starts = (CALL, FUNCTION)

    def calls(self, tape: Tape, at: int, tools: Sequence[ToolSchema]) -> Generator[CalledTool | None, None, int | None]:
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
            arguments[key] = _typed(tape.text[begin:end], schema.get("properties", {}).get(key), schema)
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
                rules.append(_value_rule(value, one, schema, f"{tool['function']['name']}.{key}"))
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
    """The name that `tag` gives at `at`, and the place after it."""
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
    """Where a value ends: at an end tag after which the call goes on or ends, so that a value may hold one."""
    while True:
        end = yield from find(tape, at, PARAMETER_END)
        if end is None:
            return None
        at = end + len(PARAMETER_END)
        after = yield from skip(tape, at)
        for tag in (PARAMETER, FUNCTION_END):
            if (yield from expect(tape, after, tag)) is not None:
                return end


def _typed(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """A value of the type that `schema` declares; `text` itself when it declares none, or when it does not fit."""
    text = text.removeprefix("\n").removesuffix("\n")
    kinds = _kinds(schema, root)
    if kinds <= {"string"}:
        return text
    word = text.strip()
    if "boolean" in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if word.lower() == "null" and "null" in kinds:
        return None
    value = loads(word)
    fits = {_KINDS.get(type(value), "null"), "number" if isinstance(value, int) else ""} & kinds
    return value if value is not None and fits and not isinstance(value, str) else text


def _kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that `schema` allows."""
    if not isinstance(schema, Mapping) or depth > 10:
        return set()
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    if not found:
        values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
        found = {_KINDS.get(type(value), "null") for value in values}
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key, ()):
            found |= _kinds(one, root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        found |= _kinds(target, root, depth + 1)
    return found


def _value_rule(name: str, schema: Any, root: Mapping[str, Any], where: str) -> str:
    """A grammar rule for a value and the tag that ends it, such that it reads back as what `schema` allows."""
    close = grammar.text(f"\n{PARAMETER_END}")
    kinds = _kinds(schema, root)
    if kinds and "string" not in kinds:
        moved = {**schema, **{key: root[key] for key in ("$defs", "definitions") if key in root}}
        return f"{name}: {grammar.json_rule(moved)} {close}"
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices:
        return f"{name}: ({' | '.join(grammar.text(str(one)) for one in choices)}) {close}"
    unheld = {"pattern", "format", "$ref"} & set(schema)
    if unheld:
        raise Unsupported(f"tool_choice: '{min(unheld)}' of the parameter {where} cannot be enforced in this format")
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    # Lazy: the value ends at the first end tag.
    return f"{name}[lazy]: /(?s:.){{{least},{most}}}\\n<\\/parameter>/"
