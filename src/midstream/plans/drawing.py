"""Draws a plan: as lanes of text for a terminal, and as SVG. Colours show the state of each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from midstream.plans.checks import Compiled, compile_plan
from midstream.plans.plan import Node, Plan
from midstream.plans.rows import NodeRow
from midstream.plans.states import NodeState

S = NodeState
SYMBOLS = {
    S.PENDING: "○",
    S.READY: "◌",
    S.RUNNING: "▶",
    S.WAITING: "◷",
    S.RETRYING: "↻",
    S.SUCCEEDED: "●",
    S.FAILED: "✗",
    S.SKIPPED: "–",
    S.CANCELLED: "⊘",
    S.COMPENSATING: "↺",
    S.COMPENSATED: "↶",
    S.COMPENSATION_FAILED: "!",
    S.IN_DOUBT: "?",
}
COLOURS = {
    S.PENDING: "#9aa0a6",
    S.READY: "#5f6368",
    S.RUNNING: "#1a73e8",
    S.WAITING: "#b06000",
    S.RETRYING: "#e37400",
    S.SUCCEEDED: "#188038",
    S.FAILED: "#c5221f",
    S.SKIPPED: "#bdc1c6",
    S.CANCELLED: "#80868b",
    S.COMPENSATING: "#8430ce",
    S.COMPENSATED: "#a142f4",
    S.COMPENSATION_FAILED: "#a50e0e",
    S.IN_DOUBT: "#f29900",
}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _EDGE = 150, 44, 28, 46, 16


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a drawing: its lanes, and the node on it, if there is one."""

    lanes: str
    node: Node | None = None
    path: str = ""


def order(compiled: Compiled) -> list[str]:
    """Ids of nodes, each after those it depends on."""
    left = {name: len(needed) for name, needed in compiled.dependencies.items()}
    waiting = [name for name, count in left.items() if not count]
    ordered: list[str] = []
    while waiting:
        name = waiting.pop(0)
        ordered.append(name)
        for dependent in compiled.dependents[name]:
            left[dependent] -= 1
            if not left[dependent]:
                waiting.append(dependent)
    return ordered


def lanes(plan: Plan, prefix: str = "") -> list[Line]:
    """The plan as lanes, one line a node, dependencies above; sub-plans are indented below their node. Raises
    `PlanError` for a plan that is not a graph."""
    compiled = compile_plan(plan, None)
    remaining = {name: set(after) for name, after in compiled.dependents.items()}
    active: list[str] = []
    """Of each lane, the node whose dependents are still to come; empty lanes are ''."""
    lines: list[Line] = []
    for name in order(compiled):
        sources = [at for at, owner in enumerate(active) if owner in compiled.dependencies[name]]
        for at in sources:
            remaining[active[at]].discard(name)
        ended = [at for at in sources if not remaining[active[at]]]
        if ended:
            place = ended[0]
        elif "" in active and not sources:
            place = active.index("")
        else:
            place = len(active)
            active.append("")
        if [at for at in sources if at != place]:
            lines.append(Line(_join(active, sources, ended, place)))
        for at in ended:
            active[at] = ""
        active[place] = name
        symbols = ["│" if owner else " " for owner in active]
        symbols[place] = "{}"
        lines.append(Line(" ".join(symbols).rstrip(), compiled.nodes[name], prefix + name))
        if not remaining[name]:
            active[place] = ""
        node = compiled.nodes[name]
        if node.plan is not None:
            gutter = " ".join("│" if owner else " " for owner in active) + "  "
            inner = lanes(node.plan, f"{prefix}{name}/")
            lines.extend(Line(gutter + line.lanes, line.node, line.path) for line in inner)
        while active and not active[-1]:
            active.pop()
    return lines


def _join(active: Sequence[str], sources: Sequence[int], ended: Sequence[int], place: int) -> str:
    """The line on which lanes `sources` lead to lane `place`."""
    low, high = min(*sources, place), max(*sources, place)
    marks: list[str] = []
    for at in range(len(active)):
        if at == place:
            mark = "╮" if at == high else "╭" if at == low else "┬"
            if at in sources:
                mark = "├" if at == low else "┤" if at == high else "┼"
        elif at in sources:
            goes_on = at not in ended
            mark = {True: "├", False: "╰"}[goes_on] if at == low else {True: "┤", False: "╯"}[goes_on]
            if low < at < high:
                mark = "┼" if goes_on else "┴"
        elif low < at < high:
            mark = "┼" if active[at] else "─"
        else:
            mark = "│" if active[at] else " "
        marks.append(mark)
        marks.append("─" if low <= at < high else " ")
    return "".join(marks).rstrip()


def svg(plan: Plan, rows: Mapping[str, NodeRow] | None = None) -> str:
    """The plan as an SVG document: a row for each depth of dependencies, dependencies above. Sub-plans are one box; its
    count says how many of their nodes succeeded."""
    compiled = compile_plan(plan, None)
    depth: dict[str, int] = {}
    for name in order(compiled):
        depth[name] = 1 + max((depth[one] for one in compiled.dependencies[name]), default=-1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, level in depth.items():
        layers[level].append(name)
    width = max(len(layer) for layer in layers) * (_WIDTH + _GAP_X) + 2 * _EDGE - _GAP_X
    height = len(layers) * (_HEIGHT + _GAP_Y) + 2 * _EDGE - _GAP_Y
    places: dict[str, tuple[float, float]] = {}
    for level, layer in enumerate(layers):
        start = (width - len(layer) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for at, name in enumerate(layer):
            places[name] = (start + at * (_WIDTH + _GAP_X), _EDGE + level * (_HEIGHT + _GAP_Y))
    parts = [_edge(places[one], places[name]) for name in depth for one in compiled.dependencies[name]]
    parts += [_box(compiled.nodes[name], places[name], rows or {}) for name in depth]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif">\n<title>{escape(plan.name)}</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _edge(source: tuple[float, float], target: tuple[float, float]) -> str:
    x1, y1 = source[0] + _WIDTH / 2, source[1] + _HEIGHT
    x2, y2 = target[0] + _WIDTH / 2, target[1]
    middle = (y1 + y2) / 2
    return f'<path d="M{x1:g} {y1:g} C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}" fill="none" stroke="#9aa0a6"/>'


def _box(node: Node, place: tuple[float, float], rows: Mapping[str, NodeRow]) -> str:
    x, y = place
    state = rows[node.id].state if node.id in rows else S.PENDING
    inside = [row.state for path, row in rows.items() if path.startswith((f"{node.id}/", f"{node.id}[", f"{node.id}#"))]
    what = node.handler or "sub-plan"
    if inside:
        what += f" ({sum(one is S.SUCCEEDED for one in inside)}/{len(inside)})"
    middle = x + _WIDTH / 2
    return (
        f'<g><title>{escape(f"{node.id}: {state}")}</title><rect x="{x:g}" y="{y:g}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="6" fill="white" stroke="{COLOURS[state]}" stroke-width="2"/>'
        f'<text x="{middle:g}" y="{y + 18:g}" text-anchor="middle" font-size="13" fill="{COLOURS[state]}">'
        f"{escape(SYMBOLS[state])} {escape(_short(node.id))}</text>"
        f'<text x="{middle:g}" y="{y + 34:g}" text-anchor="middle" font-size="11" fill="#5f6368">'
        f"{escape(_short(what))}</text></g>"
    )


def _short(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:19]}…"
