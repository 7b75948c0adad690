"""Draws a workflow: SVG in layers, or mermaid text."""

from __future__ import annotations

from html import escape

from midstream.workflows import ir
from midstream.workflows.graph import Graph, GraphEdge, GraphNode, graph_of

_CHAR, _LINE, _PAD, _GAP_X, _GAP_Y = 7.2, 16, 12, 36, 56
_FILL = {"input": "#eef2f7", "operator": "#ffffff", "answer": "#e7f4ea"}


def write_mermaid(workflow: ir.Workflow) -> str:
    """The graph as a mermaid flowchart."""
    graph = graph_of(workflow)
    lines = ["flowchart TD"]
    for node in graph.nodes:
        text = "<br/>".join(_mermaid(part) for part in _texts(node))
        opening, closing = ("([", "])") if node.kind != "operator" else ("[", "]")
        lines.append(f'    {node.id}{opening}"{text}"{closing}')
    for edge in graph.edges:
        arrow = "-.->" if edge.control or edge.back else "-->"
        label = f'|"{_mermaid(edge.label)}"|' if edge.label else ""
        lines.append(f"    {edge.source} {arrow}{label} {edge.target}")
    return "\n".join(lines) + "\n"


def write_svg(workflow: ir.Workflow) -> str:
    """The graph as an SVG document without scripts, fonts or links."""
    graph = graph_of(workflow)
    rows = _layers(graph)
    sizes = {node.id: _size(node) for node in graph.nodes}
    widths = [sum(sizes[node.id][0] for node in row) + _GAP_X * (len(row) - 1) for row in rows]
    width = max(widths) + 2 * _GAP_X
    boxes: dict[str, tuple[float, float, float, float]] = {}
    top = float(_GAP_X)
    for row, row_width in zip(rows, widths, strict=True):
        left = (width - row_width) / 2
        for node in row:
            boxes[node.id] = (left, top, *sizes[node.id])
            left += sizes[node.id][0] + _GAP_X
        top += max(sizes[node.id][1] for node in row) + _GAP_Y
    height = top - _GAP_Y + _GAP_X
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="monospace" font-size="12">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
        *(_edge(edge, boxes) for edge in graph.edges),
        *(_box(node, boxes[node.id]) for node in graph.nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _texts(node: GraphNode) -> list[str]:
    return [node.label, *(f"prompt: {node.prompt}" for _ in range(bool(node.prompt))), *node.within]


def _size(node: GraphNode) -> tuple[float, float]:
    texts = _texts(node)
    return max(map(len, texts)) * _CHAR + 2 * _PAD, len(texts) * _LINE + 2 * _PAD - 4


def _layers(graph: Graph) -> list[list[GraphNode]]:
    """Nodes by their longest path from the inputs, without edges to a next round."""
    rank = {node.id: 0 for node in graph.nodes}
    place = {node.id: index for index, node in enumerate(graph.nodes)}
    forward = [edge for edge in graph.edges if not edge.back and place[edge.source] < place[edge.target]]
    for node in graph.nodes:
        for edge in forward:
            if edge.target == node.id:
                rank[node.id] = max(rank[node.id], rank[edge.source] + 1)
    rank["answer"] = max(max(rank.values()), rank["answer"], 1)
    if sum(value == rank["answer"] for value in rank.values()) > 1:
        rank["answer"] += 1
    rows: list[list[GraphNode]] = [[] for _ in range(max(rank.values()) + 1)]
    for node in graph.nodes:
        rows[rank[node.id]].append(node)
    return [row for row in rows if row]


def _box(node: GraphNode, box: tuple[float, float, float, float]) -> str:
    left, top, width, height = box
    radius = 4 if node.kind == "operator" else height / 2
    lines: list[str] = []
    for index, text in enumerate(_texts(node)):
        style = 'font-weight="bold"' if index == 0 else 'fill="#666"'
        x, y = left + width / 2, top + _PAD + 8 + index * _LINE
        lines.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {style}>{escape(text)}</text>')
    frame = (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:.1f}" '
        f'fill="{_FILL[node.kind]}" stroke="#555"/>'
    )
    return "\n".join([frame, *lines])


def _edge(edge: GraphEdge, boxes: dict[str, tuple[float, float, float, float]]) -> str:
    left, top, width, height = boxes[edge.source]
    to_left, to_top, to_width, to_height = boxes[edge.target]
    dashed = ' stroke-dasharray="4 3"' if edge.control or edge.back else ""
    title = f"<title>{escape(edge.label)}</title>" if edge.label else ""
    if edge.back or to_top <= top:
        right, to_right = left + width, to_left + to_width
        middle, to_middle = top + height / 2, to_top + to_height / 2
        bend = max(right, to_right) + _GAP_X * 0.8
        curve = f"{bend:.1f} {middle:.1f} {bend:.1f} {to_middle:.1f} {to_right:.1f} {to_middle:.1f}"
        path = f"M{right:.1f} {middle:.1f}C{curve}"
    else:
        x, y, to_x = left + width / 2, top + height, to_left + to_width / 2
        half = (y + to_top) / 2
        path = f"M{x:.1f} {y:.1f}C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_top:.1f}"
    return f'<path d="{path}" fill="none" stroke="#555"{dashed} marker-end="url(#arrow)">{title}</path>'


def _mermaid(text: str) -> str:
    return escape(text).replace("|", "&#124;").replace("\n", " ")
