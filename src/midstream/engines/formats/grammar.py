"""Lark grammars that constrain a reply to calls, in llguidance's dialect.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from midstream.core.types import ToolSchema
from midstream.engines.formats.schema import lean, moved

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON spacing of chat templates. Small models derail when white space is free."""


def text(literal: str) -> str:
    """Return `literal` as a grammar literal."""
    return json.dumps(literal, ensure_ascii=False)


def marker(literal: str, vocabulary: Mapping[str, int]) -> str:
    """Return `literal` as a single token if it is one: text never matches an added token, special or not."""
    return f"<[{vocabulary[literal]}]>" if literal in vocabulary else text(literal)


def any_of(bodies: Iterable[str]) -> str:
    """Return the alternation of `bodies`."""
    return " | ".join(f"({body})" for body in bodies)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return a rule for JSON that matches `schema`, with the spacing of templates."""
    return f"%json {json_schema(schema)}"


def json_schema(schema: Mapping[str, Any]) -> str:
    """Return `schema` for llguidance: with the spacing of templates, without keywords that allow everything."""
    return json.dumps({**lean(schema), "x-guidance": STYLE})


def parameters(tool: ToolSchema) -> dict[str, Any]:
    """Return the schema of a tool's arguments, which are an object."""
    return {**(tool["function"].get("parameters") or {}), "type": "object"}


def call_rule(tool: ToolSchema, arguments: str = "arguments") -> str:
    """Return a rule for the JSON object that calls `tool`, its name first."""
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
    """Return a grammar of `rules` (the first is `answer`), preceded by a thought between the tags `think`."""
    begin, end = think
    if thinks == "no":
        return f"start: answer\n{rules}"
    if end in vocabulary:
        thought = f"thought: /(?s:.*)/ {marker(end, vocabulary)}"
    else:  # lazy: the thought ends at its first end tag
        thought = f"thought[lazy]: /(?s:.*){re.escape(end).replace('/', chr(92) + '/')}/"
    begun = {"tag": f"({marker(begin, vocabulary)} thought)?", "opened": "thought"}[thinks]
    return f"start: {begun} /\\n{{0,2}}/ answer\n{thought}\n{rules}"
