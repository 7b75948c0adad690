"""A comparison as one self-contained HTML file: the table, what each method added and took, and the cost frontier."""

from __future__ import annotations

from html import escape
from pathlib import Path

from midstream.workflows.search.comparison import Comparison, Row

WIDTH, HEIGHT, MARGIN = 760, 360, 48
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #d9dee6; white-space: nowrap; }
th:first-child, td:first-child, td.how { text-align: left; }
td.how { white-space: normal; }
tr.frontier td:first-child { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: #1c2430; }
.axis { stroke: #9aa5b4; } .off { fill: #9aa5b4; stroke: #9aa5b4; } .on { fill: #1668c4; stroke: #1668c4; }
.line { fill: none; stroke: #1668c4; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #e4e8ee; } svg text { fill: #e4e8ee; }
th, td { border-color: #333b47; } }
"""


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the comparison as HTML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(comparison), encoding="utf-8")


def page(comparison: Comparison) -> str:
    """The comparison as HTML."""
    rows = comparison.rows
    budget = "" if comparison.most_tokens is None else f" Each run may use {comparison.most_tokens} tokens."
    first = escape(rows[0].name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Workflows compared</title><style>{_STYLE}</style></head><body>
<h1>Workflows compared</h1>
<p>{rows[0].tasks} test tasks{f" of {escape(comparison.tasks)}" if comparison.tasks else ""}, the same tasks and seeds \
for all.{budget} Intervals are 95 %, by bootstrap over tasks; differences are paired. Tokens are means of a run and \
include those of the model that wrote the workflow.</p>
<table><tr><th>workflow</th><th>score</th><th>95 %</th><th>to {first}</th><th>tokens</th><th>of these writing</th>\
<th>calls</th><th>USD</th><th>failed</th></tr>
{"".join(map(_result, rows))}</table>
<h2>Score and tokens</h2>
{_chart(rows)}
<p>The line is the frontier: no other entry scores at least as well with fewer tokens.</p>
{_added(rows, first)}</body></html>
"""


def _result(row: Row) -> str:
    kind = ' class="frontier"' if row.on_frontier else ""
    cells = [
        escape(row.name), _number(row.score, 3), f"{row.low:.3f} to {row.high:.3f}", _difference(row),
        _number(row.tokens, 0), _number(row.writer_tokens, 0), _number(row.model_calls, 1), _number(row.cost_usd, 6),
        str(row.failed),
    ]  # fmt: skip
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _added(rows: tuple[Row, ...], first: str) -> str:
    """What search, prompt optimisation and training each added, and took."""
    found = [row for row in rows if row.made is not None]
    if not found:
        return ""
    lines = "".join(
        f'<tr><td>{escape(row.name)}</td><td class="how">{escape(made.how)}</td><td>{_difference(row)}</td>'
        f"<td>{_number(made.tokens, 0)}</td><td>{_number(made.model_calls, 0)}</td><td>{_number(made.cost_usd, 4)}</td>"
        f"<td>{_number(made.seconds, 0)}</td><td>{_number(made.val_score, 3)}</td></tr>\n"
        for row in found
        if (made := row.made) is not None
    )
    return f"""<h2>What each method added, and what it took</h2>
<table><tr><th>workflow</th><th>method</th><th>added to {first}</th><th>tokens</th><th>calls</th><th>USD</th>\
<th>seconds</th><th>validation</th></tr>
{lines}</table>
"""


def _difference(row: Row) -> str:
    if row.difference is None:
        return "-"
    mean, low, high = row.difference
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _chart(rows: tuple[Row, ...]) -> str:
    """Score with its interval by tokens, on a logarithmic axis (by calls where tokens are unknown)."""
    from math import log10

    by_tokens = all(row.tokens is not None for row in rows)
    shown = [
        (row, max(1.0, float((row.tokens if by_tokens else row.model_calls) or 0)), row.score)
        for row in rows
        if row.score is not None
    ]
    if not shown:
        return ""
    low, high = log10(min(one[1] for one in shown)) - 0.1, log10(max(one[1] for one in shown)) + 0.35

    def x(expense: float) -> float:
        return MARGIN + (log10(expense) - low) / (high - low) * (WIDTH - 2 * MARGIN)

    def y(score: float) -> float:
        return HEIGHT - MARGIN - score * (HEIGHT - 2 * MARGIN)

    frontier = sorted((x(expense), y(score)) for row, expense, score in shown if row.on_frontier)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Score by tokens of a run">',
        f'<path class="axis" d="M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}" fill="none"/>',
        *(f'<text x="{MARGIN - 34}" y="{y(tick) + 4:.0f}">{tick:.2f}</text>' for tick in (0, 0.25, 0.5, 0.75, 1)),
        *(
            f'<text x="{x(tick):.0f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{tick:g}</text>'
            for tick in (step * 10**power for power in range(7) for step in (1, 2, 5))
            if low <= log10(tick) <= high
        ),
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{'tokens' if by_tokens else 'model calls'} of a run</text>",
        f'<path class="line" d="M{" L".join(f"{left:.1f},{top:.1f}" for left, top in frontier)}"/>',
    ]
    for row, expense, score in shown:
        kind = "on" if row.on_frontier else "off"
        left, top = x(expense), y(score)
        parts.append(
            f'<line class="{kind}" x1="{left:.1f}" x2="{left:.1f}" y1="{y(row.low):.1f}" y2="{y(row.high):.1f}"/>'
            f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" r="4"/>'
            f'<text x="{left + 7:.1f}" y="{top - 5:.1f}">{escape(row.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
