"""One turn of an autonomous agent: what it writes, and the JSON schema of that for constrained sampling.

    {"thought": "...", "add": ["find the price"], "done": [1], "tool": "search", "args": {"query": "price of tea"}}

A turn may change the task list (`add`, `done`), and then calls a tool, finishes or gives up.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from midstream.core.errors import MidstreamError
from midstream.core.toolsets import ToolSpec
from midstream.tools.calls import call_schema

MOST_ADDED = 8
ENDS = ("finish", "give_up")
_ACTIONS = {
    "tool": '"tool": "NAME", "args": {...}',
    "finish": '"finish": "the answer"',
    "give_up": '"give_up": "why the goal cannot be reached"',
}
_THOUGHTS = {
    "tool": '"thought": "...", "add": ["a task", ...], "done": [1, ...], ',
    "finish": '"thought": "...", "done": [2], ',
    "give_up": '"thought": "...", ',
}


class UnreadableTurn(MidstreamError):
    """The agent's text is not a turn. The message says what to write instead."""


class AgentTurn(BaseModel):
    """What the agent decided in one turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    thought: str = ""
    add: list[str] = Field(default_factory=list, max_length=MOST_ADDED)
    """New tasks."""
    done: list[int] = Field(default_factory=list)
    """Numbers of tasks that are done."""
    tool: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    finish: Any = None
    give_up: str | None = None

    @model_validator(mode="after")
    def _one_end(self) -> AgentTurn:
        if sum(value is not None for value in (self.tool, self.finish, self.give_up)) > 1:
            raise ValueError("give only one of tool, finish and give_up")
        return self

    @property
    def changes_tasks(self) -> bool:
        return bool(self.add or self.done)


def examples(ends: Collection[str], thoughts: bool) -> str:
    """How turns are written, one per line."""
    names = [name for name in _ACTIONS if name == "tool" or name in ends]
    return "\n".join(f"{{{_THOUGHTS[name] if thoughts else ''}{_ACTIONS[name]}}}" for name in names)


def read_turn(text: str, *, may_act: bool = True, ends: Collection[str] = ENDS) -> AgentTurn:
    """Return the turn that `text` holds as a JSON object. Raises `UnreadableTurn`; also for a tool call where the agent
    may not act any more, and for an end that is not one of `ends`."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnreadableTurn("write one JSON object")
    try:
        turn = AgentTurn.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        message = first["msg"].removeprefix("Value error, ")
        raise UnreadableTurn(f"{where}: {message}" if where else message) from None
    if turn.tool is not None and not may_act:
        raise UnreadableTurn("no tool can be called any more; write finish or give_up")
    for name in ENDS:
        if getattr(turn, name) is not None and name not in ends:
            raise UnreadableTurn(f"{name} is not possible here; call a tool")
    if turn.tool is None and turn.finish is None and turn.give_up is None and not turn.changes_tasks:
        raise UnreadableTurn("call a tool, change the tasks, finish, or give up")
    return turn


def turn_schema(
    tools: Sequence[ToolSpec], may_act: bool, *, ends: Collection[str] = ENDS, thoughts: bool = True
) -> dict[str, Any]:
    """JSON schema of a turn. Without `thoughts` it is an action only: the task list stays as it is."""
    text: dict[str, Any] = {"type": "string"}
    changes: dict[str, Any] = {}
    if thoughts:
        changes = {
            "thought": text,
            "add": {"type": "array", "items": text, "maxItems": MOST_ADDED},
            "done": {"type": "array", "items": {"type": "integer"}},
        }
    first = ("thought",) if thoughts else ()
    options = [_option(changes, {name: text}, first) for name in ENDS if name in ends]
    definitions: dict[str, Any] = {}
    if may_act and tools:
        calls = call_schema(tools)
        definitions = calls.pop("$defs", {})
        options = [_option(changes, call["properties"], first) for call in calls.get("anyOf", [calls])] + options
    return {"anyOf": options} | ({"$defs": definitions} if definitions else {})


def _option(optional: Mapping[str, Any], required: Mapping[str, Any], first: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**optional, **required},
        "required": [*first, *required],
        "additionalProperties": False,
    }
