"""Formats numbers and evaluations for the terminal, the same way in every command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from midstream.evaluate.runs import Row


def console() -> Console:
    """Return a console on stdout that shows control characters as escapes. Output to files and pipes is not wrapped at
    80 columns."""
    from midstream.cli.terminal import VisibleConsole

    terminal = VisibleConsole(highlight=False, soft_wrap=False)
    return terminal if terminal.is_terminal else VisibleConsole(highlight=False, width=max(160, terminal.width))


def number(value: Any, digits: int = 3) -> str:
    """Format `value` with `digits` decimals; a dash if it is absent or not finite."""
    return f"{value:.{digits}f}" if _is_number(value) else "-"


def percent(value: Any) -> str:
    """Format a proportion as a percentage; a dash if it is absent."""
    return f"{100 * value:.0f} %" if _is_number(value) else "-"


def seconds(value: Any) -> str:
    """Format a duration in seconds as `48s`, `3m20s` or `1h05m`; a dash if it is absent."""
    if not _is_number(value):
        return "-"
    total = round(value)
    if total < 60:
        return f"{total}s"
    minutes, rest = divmod(total, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def interval(row: Row) -> str:
    """Format success with its interval: `92 % (82-96)`."""
    text = percent(row.get("success"))
    if _is_number(row.get("low")) and _is_number(row.get("high")):
        text += f" ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
    return text


def evaluation_table(rows: Sequence[Row]) -> Table:
    """Return a table of evaluations, one per row: success overall and by kind, with intervals."""
    from rich.markup import escape
    from rich.table import Table

    kinds = sorted({kind for row in rows for kind in row.get("by_kind") or {}})
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "split"):
        table.add_column(heading)
    for heading in ("n", "success (95 %)", *kinds, "reward", "turns"):
        table.add_column(escape(heading), justify="right")
    for row in rows:
        by_kind = row.get("by_kind") or {}
        table.add_row(
            escape(str(row.get("label") or "")),
            str(row.get("split") or ""),
            str(row.get("n") or ""),
            interval(row),
            *(interval(by_kind[kind]) if kind in by_kind else "-" for kind in kinds),
            number(row.get("reward"), 2),
            number(row.get("turns"), 1),
        )
    return table


def class_report(row: Row) -> str:
    """Return the precision, recall and F1 by class of an evaluation as text; empty without classes."""
    if "classification" not in row:
        return ""
    from midstream.core.classification import ClassificationReport

    return f"\n{row.get('label') or ''}, by class:\n{ClassificationReport.of(row['classification'])}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
