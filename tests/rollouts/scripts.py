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

SCRIPTS: dict[str, Scripted] = {"react": Scripted(REACT)}
