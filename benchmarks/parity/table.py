"""Results of a level: one green or red line per comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: what was compared, the numbers, and whether they are close enough."""

    cells: tuple[str, ...]
    ok: bool


@dataclass(frozen=True, slots=True)
class Level:
    """A level of parity; `lines` are made as they are asked for."""

    title: str
    header: tuple[str, ...]
    lines: Iterator[Line]


def show(level: Level, *, stop_at_red: bool = False) -> bool:
    """Print `level` as a Markdown table, line by line. True when all of it is green."""
    print(f"\n### {level.title}\n")
    print(_row([*level.header, ""]))
    print(_row(["---"] * (len(level.header) + 1)))
    good = True
    for line in level.lines:
        print(_row([*line.cells, "green" if line.ok else "RED"]), flush=True)
        good = good and line.ok
        if not good and stop_at_red:
            break
    return good


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def small(value: float) -> str:
    """A difference, to two digits."""
    return "0" if value == 0 else f"{value:.1e}"


def furthest(differences: Iterable[float]) -> float:
    """The largest; infinite when one is not a number, which `max` would pass over."""
    return max(math.inf if math.isnan(value) else value for value in differences)
