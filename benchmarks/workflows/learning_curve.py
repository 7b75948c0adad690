"""Draws validity and reward by training step, for runs of `workflow_writer`.

python benchmarks/workflows/learning_curve.py runs/workflow_learning --out curve.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from midstream.evaluate.runs import load_run

PANELS = (
    ("sampled workflows that may run", "rewards/workflow_invalid", lambda value: 1 - value),
    ("mean reward", "reward", lambda value: value),
)
COLORS = ("#0f766e", "#7c5cbf", "#c2410c", "#1668c4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curve.png"))
    options = parser.parse_args()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (title, column, shown) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for color, path in zip(COLORS, options.runs, strict=False):
            rows = load_run(path).rl
            axes.plot([row["step"] for row in rows], [shown(row[column]) for row in rows], color=color, label=path.name)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("training step")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
        axes.grid(color="#e4e8ec")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if len(options.runs) > 1:
        figure.axes[0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
