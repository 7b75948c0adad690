"""Which writes of a plan the kill-point fuzzing kills at, and how many distinct ones it has covered.

A plan's shape is its graph with the kind of each node and its remedies, without names and values. The kind of a write
is what it records: the new states of nodes, and other events by their kind. A pair of both is covered once a process
was killed at such a write of such a plan.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

NAMES = ("id", "name", "savepoint", "rollback_to", "prompt")


def shape(plan: dict[str, Any]) -> str:
    """The shape of a plan as text."""
    places = {node["id"]: place for place, node in enumerate(plan["nodes"])}
    nodes = [
        _outline({**node, "after": sorted(places[one] for one in node.get("after", []))}) for node in plan["nodes"]
    ]
    return json.dumps(
        [_outline({name: value for name, value in plan.items() if name != "nodes"}), nodes], sort_keys=True
    )


def _outline(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a plan or node in which names are replaced by whether they are set, and arguments by whether they make
    the call fail or can be undone."""
    outline: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "plan":
            outline[name] = shape(value)
        elif name == "args":
            outline[name] = {key: one for key, one in value.items() if key in ("fails", "undoable", "asks")}
        elif name == "map":
            outline[name] = len(value["over"])
        elif name in NAMES or name == "when":
            outline[name] = True
        elif isinstance(value, dict):
            outline[name] = _outline(value)
        elif name == "fallback":
            outline[name] = [_outline(one) for one in value]
        else:
            outline[name] = value
    outline.pop("id", None)
    return outline


class Coverage:
    """Counts kill points, and chooses those of a plan so that pairs and rare kinds of write come first."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()

    @property
    def killed(self) -> int:
        return self.moments.total()

    def add(self, plan: dict[str, Any], kind: str, moment: str) -> None:
        self.kinds[kind] += 1
        self.moments[moment] += 1
        self._pairs[shape(plan), kind] += 1

    def choose(
        self, plan: dict[str, Any], writes: list[str], at_most: int, draw: random.Random
    ) -> list[tuple[int, bool]]:
        """Writes of an undisturbed run, whose kinds are `writes`: their numbers from 1, and whether to kill after them.
        One of each kind that was not killed at in a plan of this shape, those killed at least often first."""
        form = shape(plan)
        places: dict[str, list[int]] = {}
        for number, kind in enumerate(writes, 1):
            if not self._pairs[form, kind]:
                places.setdefault(kind, []).append(number)
        rarest = sorted(places, key=lambda kind: self.kinds[kind])
        return [(draw.choice(places[kind]), draw.random() < 0.5) for kind in rarest[:at_most]]

    def summary(self) -> dict[str, Any]:
        states: Counter[str] = Counter()
        for kind, count in self.kinds.items():
            for state in kind.split("+"):
                states[state] += count
        return {
            "killed": self.killed,
            "shapes": len({form for form, _ in self._pairs}),
            "kinds": len(self.kinds),
            "pairs": len(self._pairs),
            "moments": dict(self.moments),
            "by_state": dict(states.most_common()),
            "by_kind": dict(self.kinds.most_common()),
        }
