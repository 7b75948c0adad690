"""Who may write to whom among peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Topology = Literal["ring", "star", "full", "edges"]


def neighbours(
    topology: Topology, members: Sequence[str], hub: str, edges: Sequence[tuple[str, str]]
) -> dict[str, tuple[str, ...]]:
    """Return for each member those to whom it may write.

    `ring`: the next one in the order of `members`. `star`: `hub` and all others, in both directions. `full`: everyone
    else. `edges`: as given, from the first to the second of each pair."""
    if topology == "ring":
        return {name: (members[(at + 1) % len(members)],) for at, name in enumerate(members)}
    if topology == "star":
        others = tuple(name for name in members if name != hub)
        return {name: others if name == hub else (hub,) for name in members}
    if topology == "full":
        return {name: tuple(other for other in members if other != name) for name in members}
    return {name: tuple(dict.fromkeys(to for giver, to in edges if giver == name)) for name in members}
