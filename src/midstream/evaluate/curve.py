"""Draws the learning curve of a run: success, reward, and evaluations with confidence intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.files import make_private
from midstream.evaluate.runs import Row, Run, load_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
SUCCESS, REWARD, EVALUATION, BASE, WARM = "#0f766e", "#7c5cbf", "#c2410c", "#8a94a0", "#b7791f"
LEVELS = (("base", BASE), ("warm start", WARM))


def draw_curve(run_dir: str | Path) -> Path:
    """Draw `curve.png` in `run_dir` from the run's files and return its path. Works while the run is in progress."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run = load_run(run_dir)
    # Not pyplot, which has global state: user code may plot at the same time.
    figure = Figure(figsize=(9.6, 6.0), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1])
    _draw_success(above, run)
    _draw_reward(below, run)
    steps = [int(row["step"]) for row in run.rl if row.get("step") is not None]
    last = max([1, *steps, *(int(row.get("step") or 0) for row in run.evals)])
    below.set_xlim(-0.02 * last, last * 1.035)
    below.set_xlabel("training step", color=MUTED)
    figure.suptitle(run.name, x=0.07, y=0.968, ha="left", va="center", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.985, 0.968, _subtitle(run), ha="right", va="center", fontsize=9, color=MUTED)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.895, bottom=0.085, hspace=0.16)
    path = run.path / "curve.png"
    # Renamed into place, so that a viewer never sees a partial image.
    partial = path.with_name(f".curve-{os.getpid()}.png")
    try:
        figure.savefig(partial)
        make_private(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _draw_success(axes: Axes, run: Run) -> None:
    _style(axes, "success")
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    _draw_series(axes, run.rl, "success", SUCCESS, "training, sampled")
    _draw_levels(axes, run)
    named = [label for label, _ in LEVELS]
    points = [row for row in run.evals if row.get("split") == "val" and row.get("label") not in named]
    _draw_points(axes, points, "o", EVALUATION, "held out (val), 95 % interval")
    final = run.evaluation("final", "test")
    if final and _is_number(final.get("success")):
        # Shifted from the last val point, which has the same step.
        beside = {**final, "step": float(final.get("step") or 0) * 1.013}
        _draw_points(axes, [beside], "D", INK, f"held out (test) {100 * final['success']:.0f} %")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=3,
            frameon=False,
            borderaxespad=0.1,
            fontsize=8.5,
            labelcolor=INK,
            columnspacing=1.4,
        )
    else:
        axes.text(0.5, 0.5, "no steps yet", transform=axes.transAxes, ha="center", color=MUTED)


def _draw_levels(axes: Axes, run: Run) -> None:
    drawn: list[float] = []
    for label, colour in LEVELS:
        row = run.evaluation(label, "val") or run.evaluation(label)
        if row is None or not _is_number(row.get("success")):
            continue
        level = row["success"]
        crowded = any(abs(level - other) < 0.07 for other in drawn)
        drawn.append(level)
        axes.axhline(level, color=colour, linewidth=1.2, linestyle=(0, (5, 4)), zorder=2)
        axes.annotate(
            f"{label} {100 * level:.0f} %",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-80 if crowded else -4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=colour,
        )


def _draw_reward(axes: Axes, run: Run) -> None:
    _style(axes, "reward")
    _draw_series(axes, run.rl, "reward", REWARD, "")


def _draw_series(axes: Axes, rows: Sequence[Row], key: str, colour: str, label: str) -> None:
    pairs = [(row["step"], row[key]) for row in rows if _is_number(row.get(key)) and row.get("step") is not None]
    if not pairs:
        return
    steps, values = zip(*pairs, strict=True)
    axes.plot(steps, values, color=colour, linewidth=1, alpha=0.28, marker="." if len(steps) < 3 else "", zorder=3)
    axes.plot(steps, smooth(values), color=colour, linewidth=2.2, label=label or None, zorder=4)


def _draw_points(axes: Axes, rows: Sequence[Row], marker: str, colour: str, label: str) -> None:
    rows = [row for row in rows if _is_number(row.get("success"))]
    if not rows:
        return
    values = [row["success"] for row in rows]
    below = [max(0.0, value - _or(row.get("low"), value)) for row, value in zip(rows, values, strict=True)]
    above = [max(0.0, _or(row.get("high"), value) - value) for row, value in zip(rows, values, strict=True)]
    axes.errorbar(
        [float(row.get("step") or 0) for row in rows],
        values,
        yerr=[below, above],
        fmt=marker,
        color=colour,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.3,
        capsize=3,
        label=label,
        zorder=5,
    )


def smooth(values: Sequence[float]) -> list[float]:
    """Smooth `values` with a Gaussian window of about a twentieth of the run, truncated at both ends."""
    sigma = max(1.0, len(values) / 20)
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(reach + 1)]
    smoothed: list[float] = []
    for centre in range(len(values)):
        window = range(max(0, centre - reach), min(len(values), centre + reach + 1))
        total = sum(weights[abs(index - centre)] for index in window)
        smoothed.append(sum(weights[abs(index - centre)] * values[index] for index in window) / total)
    return smoothed


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=MUTED, pad=4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _subtitle(run: Run) -> str:
    parts = [str(run.info["model"])] if run.info.get("model") else []
    if run.info.get("seed") is not None:
        parts.append(f"seed {run.info['seed']}")
    spent_s = sum(row["time_s"] for row in run.metrics if _is_number(row.get("time_s")))
    if spent_s:
        parts.append(f"{spent_s / 60:.1f} min of training" if spent_s >= 60 else f"{spent_s:.0f} s of training")
    return " · ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _or(value: Any, otherwise: float) -> float:
    return float(value) if _is_number(value) else otherwise
