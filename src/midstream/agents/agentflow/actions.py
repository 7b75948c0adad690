"""What a planner decides each turn, as data, and the two notations it may be written in.

`json` is one object with every field. `compact` is a few lines for small models: optional `justification:`, `context:`
and `sub_goal:` lines, then `TOOL: INPUT`. INPUT is the one argument of the tool as plain text, or a JSON object of
arguments. `none` is the tool of a planner that needs no tool, or no other one.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from midstream.core.errors import MidstreamError, nearest
from midstream.tools import Toolbox

Notation = Literal["compact", "json"]
PlanField = Literal["justification", "context", "sub_goal"]
NO_TOOL = "none"
_ACTION = re.compile(r"([A-Za-z_][\w.-]*)\s*(?::\s*(.*))?", re.DOTALL)
_FIELD = re.compile(r"(justification|context|sub_goal)\s*:\s*(.*)")


class UnreadableAction(MidstreamError):
    """The planner's text is not an action. The message tells the planner what to write instead."""


class NextStep(BaseModel):
    """One action of the planner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    justification: str = ""
    context: str = ""
    sub_goal: str = ""
    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)


def read_action(text: str, notation: Notation, toolbox: Toolbox, required: tuple[PlanField, ...] = ()) -> NextStep:
    """Parse the planner's `text`. Raises `UnreadableAction` for text that is not an action; arguments are checked
    later."""
    action = _read_json(text) if notation == "json" else _read_compact(text, toolbox)
    missing = [name for name in required if not getattr(action, name)]
    if missing:
        raise UnreadableAction(f"also give {', '.join(missing)}")
    return action


def write_action(action: NextStep, notation: Notation) -> str:
    """`action` in a notation; `read_action` gives it back, a lone text argument as the one parameter of its tool."""
    if notation == "json":
        return action.model_dump_json()
    lines = [
        f"{name}: {getattr(action, name)}" for name in ("justification", "context", "sub_goal") if getattr(action, name)
    ]
    values = list(action.arguments.values())
    plain = len(values) == 1 and _is_plain(values[0])
    given = "" if not values else f": {values[0] if plain else json.dumps(action.arguments)}"
    return "\n".join([*lines, f"{action.tool}{given}"])


def _is_plain(value: Any) -> bool:
    """True for text that reads back as it is: reading strips it and takes every line break for the same."""
    return isinstance(value, str) and value != "" and value == "\n".join(value.strip().splitlines()) and value[0] != "{"


def _read_compact(text: str, toolbox: Toolbox) -> NextStep:
    fields: dict[str, str] = {}
    lines = text.strip().splitlines()
    while lines and (match := _FIELD.fullmatch(lines[0].strip())):
        fields[match.group(1)] = match.group(2).strip()
        lines.pop(0)
    match = _ACTION.fullmatch("\n".join(lines).strip())
    if match is None:
        raise UnreadableAction("write `TOOL: INPUT`")
    name, given = match.group(1), (match.group(2) or "").strip()
    return NextStep(tool=name, arguments=_arguments(name, given, toolbox), **fields)


def _arguments(name: str, given: str, toolbox: Toolbox) -> dict[str, Any]:
    if given.startswith("{"):
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, or nested too deep
            raise UnreadableAction(f"the arguments of {_short(name)} are not a JSON object") from None
        return parsed if isinstance(parsed, dict) else {}
    tool = toolbox.get(name)
    if not given or tool is None:
        return {"input": given} if given else {}
    parameters = list(tool.parameters["properties"])
    if len(parameters) != 1:
        raise UnreadableAction(f"give the arguments of {name} as a JSON object with {', '.join(parameters)}")
    return {parameters[0]: given}


def _read_json(text: str) -> NextStep:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise UnreadableAction("write one JSON object with tool and arguments")
    try:
        return NextStep.model_validate_json(text[start : end + 1])
    except ValidationError as error:
        first = error.errors()[0]
        where = _short(".".join(str(part) for part in first["loc"]))
        hint = nearest(where, NextStep.model_fields) if first["type"] == "extra_forbidden" else first["msg"]
        raise UnreadableAction(f"the JSON object is wrong at {where or 'its start'}: {hint}") from None


def _short(text: str) -> str:
    """What a model wrote, short enough to tell it."""
    return text if len(text) <= 64 else f"{text[:60]}..."
