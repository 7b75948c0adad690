"""Actions of the planner as data, and the two notations they are written in.

`json` is one object with every field. `compact` is a few lines for small models: optional `justification:`, `context:`
and `sub_goal:` lines, then `TOOL: INPUT`. INPUT is the tool's only argument as plain text, or a JSON object of
arguments. The tool `none` means that no (other) tool is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from midstream.core.errors import MidstreamError, nearest
from midstream.core.toolsets import ToolSpec
from midstream.tools.calls import hoisted

Notation = Literal["compact", "json"]
ActionField = Literal["justification", "context", "sub_goal"]
NO_TOOL = "none"
_ACTION = re.compile(r"([A-Za-z_][\w.-]*)\s*(?::\s*(.*))?", re.DOTALL)
_FIELD = re.compile(r"(justification|context|sub_goal)\s*:\s*(.*)")


class UnreadableAction(MidstreamError):
    """The planner's text is not an action. The message tells the planner what to write instead."""


class KnownTools(Protocol):
    """The tools an action may name: a `Toolbox` or a `ToolSession`."""

    def get(self, name: str) -> ToolSpec | None: ...


class NextStep(BaseModel):
    """One action of the planner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    justification: str = ""
    context: str = ""
    sub_goal: str = ""
    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)


def read_action(text: str, notation: Notation, tools: KnownTools, required: tuple[ActionField, ...] = ()) -> NextStep:
    """Parse the planner's `text`. Raises `UnreadableAction` for text that is not an action; arguments are checked
    later."""
    action = _read_json(text) if notation == "json" else _read_compact(text, tools)
    missing = [name for name in required if not getattr(action, name)]
    if missing:
        raise UnreadableAction(f"also give {', '.join(missing)}")
    return action


def write_action(action: NextStep, notation: Notation) -> str:
    """`action` as text. `read_action` restores it; a single text argument becomes the only parameter of its tool."""
    if notation == "json":
        return action.model_dump_json()
    lines = [
        f"{name}: {getattr(action, name)}" for name in ("justification", "context", "sub_goal") if getattr(action, name)
    ]
    values = list(action.arguments.values())
    plain = len(values) == 1 and _is_plain(values[0])
    given = "" if not values else f": {values[0] if plain else json.dumps(action.arguments)}"
    return "\n".join([*lines, f"{action.tool}{given}"])


def action_schema(tools: Sequence[ToolSpec], fields: Sequence[ActionField], *, arguments: bool) -> dict[str, Any]:
    """JSON schema of the planner's actions in the notation `json`: calls of `tools`, with or without their `arguments`,
    and the tool `none`."""
    definitions, options = dict[str, Any](), list[dict[str, Any]]()
    written: dict[str, Any] = {name: {"type": "string", "minLength": 1} for name in fields}
    for tool in tools:
        properties = written | {"tool": {"const": tool.name}}
        if arguments:
            properties["arguments"] = hoisted(tool.parameters, tool.name, definitions)
        options.append(_object(properties))
    options.append(_object(written | {"tool": {"const": NO_TOOL}}))
    return {"anyOf": options} | ({"$defs": definitions} if definitions else {})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _is_plain(value: Any) -> bool:
    """True for text that reading restores unchanged: reading strips it and normalises line breaks."""
    return isinstance(value, str) and value != "" and value == "\n".join(value.strip().splitlines()) and value[0] != "{"


def _read_compact(text: str, tools: KnownTools) -> NextStep:
    fields: dict[str, str] = {}
    lines = text.strip().splitlines()
    while lines and (match := _FIELD.fullmatch(lines[0].strip())):
        fields[match.group(1)] = match.group(2).strip()
        lines.pop(0)
    match = _ACTION.fullmatch("\n".join(lines).strip())
    if match is None:
        raise UnreadableAction("write `TOOL: INPUT`")
    name, given = match.group(1), (match.group(2) or "").strip()
    return NextStep(tool=name, arguments=_arguments(name, given, tools), **fields)


def _arguments(name: str, given: str, tools: KnownTools) -> dict[str, Any]:
    if given.startswith("{"):
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, or nested too deep
            raise UnreadableAction(f"the arguments of {_short(name)} are not a JSON object") from None
        return parsed if isinstance(parsed, dict) else {}
    tool = tools.get(name)
    if not given or tool is None:
        return {"input": given} if given else {}
    parameters = list(tool.parameters.get("properties", {}))
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
    """A model's text, shortened for an error message."""
    return text if len(text) <= 64 else f"{text[:60]}..."
