"""The action space of the `react` flow: typed actions as JSON, and the schema that constrained sampling uses.

The actions are those of seed 002's action space: reasoning, search, call_api, memory_retrieve, plan, answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from midstream.core.errors import MidstreamError, nearest
from midstream.core.toolsets import ToolSpec
from midstream.tools.calls import call_schema, hoisted

ActionName = Literal["reasoning", "search", "call_api", "memory_retrieve", "plan", "answer"]


class Action(BaseModel):
    """Base of the actions. Unknown parameters are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reasoning(Action):
    """Think, without acting."""

    action: Literal["reasoning"]
    thought: str


class Search(Action):
    """Look something up."""

    action: Literal["search"]
    query: str


class CallApi(Action):
    """Call a tool."""

    action: Literal["call_api"]
    tool: str
    args: dict[str, Any] = Field(default_factory=dict)


class MemoryRetrieve(Action):
    """Recall from long-term memory, by key or by what it is about."""

    action: Literal["memory_retrieve"]
    query: str = ""
    key: str = ""


class Plan(Action):
    """Write down the steps that are left."""

    action: Literal["plan"]
    steps: list[str]


class Answer(Action):
    """Answer, and finish."""

    action: Literal["answer"]
    answer: Any


AnyAction = Reasoning | Search | CallApi | MemoryRetrieve | Plan | Answer
_ACTIONS: Mapping[str, type[Action]] = {
    "reasoning": Reasoning,
    "search": Search,
    "call_api": CallApi,
    "memory_retrieve": MemoryRetrieve,
    "plan": Plan,
    "answer": Answer,
}
_READER: TypeAdapter[AnyAction] = TypeAdapter(Annotated[AnyAction, Field(discriminator="action")])
_EXAMPLES = {
    "reasoning": '{"action": "reasoning", "thought": "..."}',
    "search": '{"action": "search", "query": "..."}',
    "call_api": '{"action": "call_api", "tool": "NAME", "args": {...}}',
    "memory_retrieve": '{"action": "memory_retrieve", "query": "..."}',
    "plan": '{"action": "plan", "steps": ["...", "..."]}',
    "answer": '{"action": "answer", "answer": "..."}',
}


class UnreadableAction(MidstreamError):
    """The policy's text is not an action. The message says what to write instead."""


def read_action(text: str, allowed: Collection[str]) -> AnyAction:
    """The action that `text` holds as a JSON object. Raises `UnreadableAction` for anything else, and for an action
    that is not `allowed`."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnreadableAction("write one JSON object with an action")
    name = found.get("action")
    if not isinstance(name, str) or name not in _ACTIONS:
        raise UnreadableAction(f"there is no action '{str(name)[:40]}'; {nearest(str(name)[:40], allowed)}")
    if name not in allowed:
        raise UnreadableAction(f"no action '{name}' is left; {nearest(name, allowed)}")
    try:
        return _READER.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])[:60]
        raise UnreadableAction(f"{name}: {where or 'it'}: {first['msg']}; write {_EXAMPLES[name]}") from None


def examples(allowed: Collection[str]) -> str:
    """How each allowed action is written, one per line."""
    return "\n".join(_EXAMPLES[name] for name in _ACTIONS if name in allowed)


def action_schema(
    allowed: Collection[str], tools: Sequence[ToolSpec], answer: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """JSON schema of the allowed actions; `call_api` takes calls of `tools` only, `answer` a value of its schema."""
    text, definitions = {"type": "string"}, dict[str, Any]()
    options: list[dict[str, Any]] = []
    for name in (name for name in _ACTIONS if name in allowed):
        const: dict[str, Any] = {"action": {"const": name}}
        match name:
            case "reasoning":
                options.append(_object(const | {"thought": text}))
            case "search":
                options.append(_object(const | {"query": text}))
            case "memory_retrieve":
                options += [_object(const | {"query": text}), _object(const | {"key": text})]
            case "plan":
                options.append(_object(const | {"steps": {"type": "array", "items": text}}))
            case "answer":
                # The owner's name is not one that a tool can have.
                value = text if answer is None else hoisted(answer, "the.answer", definitions)
                options.append(_object(const | {"answer": value}))
            case _:
                calls = call_schema(tools) if tools else {"anyOf": []}
                definitions |= calls.pop("$defs", {})
                for call in calls.get("anyOf", [calls]):
                    options.append(_object(const | call["properties"]))
    return {"anyOf": options} | ({"$defs": definitions} if definitions else {})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
