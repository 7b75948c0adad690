"""Scripted agents for attempts that are killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.engines.base import Request

Script = Callable[[Request], str]


@dataclass(frozen=True)
class Scripted:
    """A flow's settings, and what its model says."""

    script: Script
    settings: Mapping[str, Any] = field(default_factory=dict)


def _act(name: str, **parameters: Any) -> str:
    return json.dumps({"action": name, **parameters})


def _by_turn(*texts: str) -> Script:
    """Reply with the n-th text after n replies."""
    return lambda request: texts[sum(message["role"] == "assistant" for message in request.messages)]


REACT = _by_turn(
    _act("reasoning", thought="SEED"),
    _act("call_api", tool="look", args={"what": "rooms"}),
    _act("call_api", tool="book", args={"what": "room SEED"}),
    _act("reasoning", thought="SEED"),
    _act("answer", answer="booked SEED"),
)


def _plan(*steps: Mapping[str, Any]) -> str:
    return json.dumps({"steps": list(steps)})


_BOOKING = (
    {"id": "rooms", "tool": "look", "args": {"what": "rooms"}},
    {"id": "price", "tool": "look", "args": {"what": "price"}},
    {"id": "choose", "task": "Choose from {rooms} for {price}.", "needs": ["rooms", "price"]},
    {"id": "pay", "tool": "no_such_tool", "args": {}, "needs": ["choose"]},
)
_GOOD = (*_BOOKING[:3], {"id": "pay", "tool": "book", "args": {"what": "{choose}"}, "needs": ["choose"]})


def _planning(request: Request) -> str:
    said = sum(message["role"] == "assistant" for message in request.messages)
    match request.role:
        case "planner":
            return _plan(*_BOOKING) if said == 0 else _plan(*_GOOD)
        case "scheduler":
            return "price"
        case "executor":
            return "room SEED"
        case "verifier":
            return "yes"
        case _:
            return "booked SEED"


def _turn(**fields: Any) -> str:
    return json.dumps({"thought": "SEED", **fields})


_AUTONOMOUS = _by_turn(
    _turn(add=["find rooms", "book one"]),
    _turn(tool="look", args={"what": "rooms"}),
    "not a turn",
    _turn(done=[1], tool="book", args={"what": "room SEED"}),
    _turn(done=[2], finish="booked SEED"),
)


def _working(request: Request) -> str:
    return "yes" if request.role == "critic" else _AUTONOMOUS(request)


def _call(tool: str, what: str) -> str:
    return json.dumps({"tool": tool, "args": {"what": what}})


_TEAM = {"members": {"clerk": {"tools": ["look"]}, "booker": {"tools": ["book"]}}}
_TASKS = (
    {"id": "rooms", "member": "clerk", "task": "Find rooms."},
    {"id": "booked", "member": "booker", "task": "Book one.", "after": ["rooms"]},
)


def _coordinating(request: Request) -> str:
    said = sum(message["role"] == "assistant" for message in request.messages)
    match request.role:
        case "manager":
            return json.dumps({"add": _TASKS}) if said == 0 else '{"answer_from": "booked"}'
        case "clerk":
            return (_call("look", "rooms"), "rooms SEED")[said]
        case _:
            return (_call("book", "room SEED"), "booked SEED")[said]


def _passing(request: Request) -> str:
    said = sum(message["role"] == "assistant" for message in request.messages)
    if request.role == "clerk":
        return (_call("look", "rooms"), "rooms SEED")[said]
    return (_call("book", "room SEED"), json.dumps({"answer": "booked SEED"}))[said]


SCRIPTS: dict[str, Scripted] = {
    "react": Scripted(REACT),
    "plan_and_execute": Scripted(_planning, {"strategy": "graph", "review": True, "choose": "role"}),
    "autogpt": Scripted(_working),
    "coordinator": Scripted(_coordinating, _TEAM),
    "peers": Scripted(_passing, _TEAM),
}
