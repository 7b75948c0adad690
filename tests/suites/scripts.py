"""A scripted engine that imitates a capable model: calls required tools, follows schemas, and otherwise replies."""

from __future__ import annotations

import json
import re
from typing import Any

from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine


def scripted(tokenizer: ChatTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, reply_to)


def reply_to(request: Request) -> str:
    """A call where tools are offered and none has been answered yet; JSON where a schema asks for it. A text that the
    last message quotes is taken for the argument."""
    last = request.messages[-1] if request.messages else {"role": "user", "content": ""}
    quoted = re.findall(r"'(.+?)'", str(last.get("content")))
    grammar = "" if request.constraint is None else request.constraint.grammar
    names = [tool["function"]["name"] for tool in request.tools]
    chosen = [place for place, name in enumerate(names) if f'"{name}"' in grammar] or [0]
    if request.tools and last["role"] != "tool":
        function = request.tools[chosen[0]]["function"]
        parameters = function.get("parameters") or {}
        arguments = example(parameters, parameters, *quoted[:1])
        call = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"
    if grammar and request.constraint is not None and request.constraint.kind == "json_schema":
        schema = json.loads(grammar)
        return json.dumps(example(schema, schema) or {"setup": "a text", "punchline": "a text"})
    return "One, two, three, four, five."


def example(schema: Any, root: Any, text: str = "a text") -> Any:
    """Return a value that `schema` allows, for the kinds of schemas that the suites declare."""
    if "$ref" in schema:
        place = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            place = place[name]
        return example(place, root, text)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return example(schema[several][0], root, text)
    if schema.get("type") == "object" or "properties" in schema:
        return {name: example(one, root, text) for name, one in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [example(schema.get("items", {}), root, text)]
    return {"integer": 3, "number": 3, "boolean": True, "null": None}.get(schema.get("type"), text)
