"""Lark grammars that hold a reply to calls, in the dialect of llguidance.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from midstream.core.errors import Unsupported
from midstream.core.types import ToolSchema
from midstream.engines.base import Constraint
from midstream.engines.formats.schema import lean, moved

if TYPE_CHECKING:
    from midstream.engines.formats.chat_format import ChatFormat

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as chat templates write it. Free white space is where small models lose their way."""


def text(literal: str) -> str:
    """`literal` as a grammar writes it."""
    return json.dumps(literal, ensure_ascii=False)


def marker(literal: str, vocabulary: Mapping[str, int]) -> str:
    """`literal` as the one token it is, where it is one: no added token, special or not, is spelled by text."""
    return f"<[{vocabulary[literal]}]>" if literal in vocabulary else text(literal)


def any_of(bodies: Iterable[str]) -> str:
    """One of `bodies`."""
    return " | ".join(f"({body})" for body in bodies)


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON that `schema` allows, in the style of templates."""
    return f"%json {json_schema(schema)}"


def json_schema(schema: Mapping[str, Any]) -> str:
    """`schema` as llguidance takes it: in the style of templates, without keywords that allow everything."""
    return json.dumps({**lean(schema), "x-guidance": STYLE})


def parameters(tool: ToolSchema) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object."""
    return {**(tool["function"].get("parameters") or {}), "type": "object"}


def call_rule(tool: ToolSchema, arguments: str = "arguments") -> str:
    """The JSON object that calls `tool`, its name first."""
    return json_rule(
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                arguments: moved(parameters(tool), f"#/properties/{arguments}"),
            },
            "required": ["name", arguments],
            "additionalProperties": False,
        }
    )


def after_thought(rules: str, thinks: str, vocabulary: Mapping[str, int], think: tuple[str, str]) -> str:
    """A grammar of `rules` (the first is `answer`), after the thought between the tags `think` that begins a reply."""
    begin, end = think
    if thinks == "no":
        return f"start: answer\n{rules}"
    if end in vocabulary:
        thought = f"thought: /(?s:.*)/ {marker(end, vocabulary)}"
    else:  # lazy: the thought is over at its first end tag
        thought = f"thought[lazy]: /(?s:.*){re.escape(end).replace('/', chr(92) + '/')}/"
    begun = {"tag": f"({marker(begin, vocabulary)} thought)?", "opened": "thought"}[thinks]
    return f"start: {begun} /\\n{{0,2}}/ answer\n{thought}\n{rules}"


def response_constraint(
    chat_format: ChatFormat,
    wanted: Mapping[str, Any] | None,
    tools: Sequence[ToolSchema] = (),
    parallel: bool = True,
) -> Constraint | None:
    """What `response_format` of OpenAI's chat API asks for: None for text, else JSON, or calls of `tools`. Raises
    `Unsupported`."""
    kind = (wanted or {}).get("type", "text")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return chat_format.answer({"type": "object"}, tools, parallel)
    schema = (wanted.get("json_schema") or {}).get("schema")
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise Unsupported(
            f"response_format {json.dumps(dict(wanted))[:200]}: known are text, json_object and json_schema"
        )
    return chat_format.answer(schema, tools, parallel)
