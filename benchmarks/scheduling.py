"""Trains π(v | s) on `schedule_kitchen` with several seeds, and compares it with fixed policies on held-out menus.

    python benchmarks/scheduling.py --seeds 3 --out scheduling

Writes `results.json` and `scheduling.png` into the folder, and prints the table of docs/plans.md. Finished runs in the
folder are not trained again; about four minutes a seed on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from midstream.api import evaluate, load_config, train
from midstream.evaluate.runs import load_run

CONFIG = Path(__file__).parents[1] / "configs" / "schedule.yaml"
FIXED = {"random": "chance", "first": "first come, first served", "longest": "longest chain first (knows the hours)"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("scheduling"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [trained(seed, arguments.out / f"kitchen-{seed}") for seed in range(arguments.seeds)]
    rows = [row(label, evaluate(config=CONFIG, overrides=[f"flow.settings.choose={name}"]))
            for name, label in FIXED.items()]  # fmt: skip
    for seed, run in enumerate(runs):
        for label, name in (("base", "before"), ("final", "after")):
            found = load_run(run).evaluation(label, "test")
            assert found is not None
            rows.append(row(f"seed {seed}, {name} training", found))
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(runs, rows, arguments.out / "scheduling.png")
    print("| policy | reward | best schedule found (95 %) |\n| --- | --- | --- |")
    for one in rows:
        print(f"| {one['policy']} | {one['reward']:.2f} | "
              f"{one['success']:.0%} ({100 * one['low']:.0f}-{100 * one['high']:.0f}) |")  # fmt: skip


def trained(seed: int, folder: Path) -> Path:
    if not (folder / "run.json").exists() or load_run(folder).status != "finished":
        overrides = [f"trainer.run_dir={folder}", f"trainer.seed={seed}", f"tasks.seed={seed}"]
        train(load_config(CONFIG, overrides), resume=folder.exists())
    return folder


def row(policy: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"policy": policy, **{name: found[name] for name in ("n", "reward", "success", "low", "high")}}


def draw(runs: list[Path], rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), dpi=130)
    for seed, run in enumerate(runs):
        points = [(one["step"], one["reward"]) for one in load_run(run).evals if one["split"] == "val"]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"trained, seed {seed}")
    for one, style in zip(rows[: len(FIXED)], (":", "-.", "--"), strict=True):
        axes.axhline(one["reward"], color="gray", linestyle=style, linewidth=1, label=one["policy"])
    axes.set(xlabel="training step", ylabel="reward on held-out menus", ylim=(0.4, 1.0))
    axes.legend(fontsize=7, loc="lower right", framealpha=1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
