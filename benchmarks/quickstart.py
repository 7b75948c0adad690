"""Trains the quickstart with several seeds: success before and after, by kind, wall time and peak memory.

    python benchmarks/quickstart.py --seeds 0 1 2 3 4 --publish

Each seed is a run of its own in a fresh process, as `midstream train` makes it. Prints a table, and writes
`quickstart.json` and `quickstart.png` into --out; --publish puts both where the README shows them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run_seed(config: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train once; returns what the run wrote, and its wall time."""
    run_dir = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "midstream", "train", config, f"trainer.seed={seed}", f"tasks.seed={seed}"]
    began = time.perf_counter()
    done = subprocess.run([*command, f"trainer.run_dir={run_dir}", *overrides], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    (run_dir / "wall_s").write_text(f"{time.perf_counter() - began:.1f}\n")
    return read_run(run_dir, seed)


def read_run(run_dir: Path, seed: int) -> dict[str, Any]:
    evals = {row["label"]: row for row in _rows(run_dir / "evals.jsonl") if row["split"] == "test"}
    steps = [row for row in _rows(run_dir / "metrics.jsonl") if row["stage"] == "rl"]
    info = json.loads((run_dir / "run.json").read_text())
    live = [row["time_s"] for row in steps if row["zero_variance_groups"] < row["groups"] / 2]
    return {
        "seed": seed,
        "wall_s": float((run_dir / "wall_s").read_text()),
        "evals": evals,
        "steps": [{"step": row["step"], "reward": row["reward"], "success": row["success"]} for row in steps],
        "peak_memory_mb": info["peak_memory_mb"],
        "versions": info["versions"],
        "live_step_s": statistics.median(live) if live else None,
        "sampling_tokens_per_s": statistics.median(row["tokens_per_s"] for row in steps),
    }


def gain_by_rl(result: dict[str, Any]) -> tuple[float, float]:
    """What reinforcement learning added to success, and its share of all that was gained over the base model."""
    base, warm, final = (result["evals"][label]["success"] for label in ("base", "warm start", "final"))
    return final - warm, (final - warm) / (final - base) if final > base else 0.0


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a seed, means below."""
    kinds = sorted(results[0]["evals"]["final"]["by_kind"])
    head = ["seed", "base", "warm start", "after RL", "by RL (of the gain)", *kinds, "wall", "peak memory"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for result in results:
        base, warm, final = (result["evals"][label]["success"] for label in ("base", "warm start", "final"))
        by_kind = [result["evals"]["final"]["by_kind"][kind]["success"] for kind in kinds]
        added, share = gain_by_rl(result)
        cells = [
            str(result["seed"]),
            *(f"{v:.2f}" for v in (base, warm, final)),
            f"{added:+.2f} ({share:.0%})",
            *(f"{v:.2f}" for v in by_kind),
        ]
        lines.append(
            "| " + " | ".join([*cells, f"{result['wall_s']:.0f} s", f"{result['peak_memory_mb'] / 1024:.1f} GB"]) + " |"
        )
    finals = [result["evals"]["final"]["success"] for result in results]
    gains = [gain_by_rl(result) for result in results]
    mean = [
        "mean",
        *(f"{statistics.mean(r['evals'][label]['success'] for r in results):.2f}" for label in ("base", "warm start")),
        f"{statistics.mean(finals):.2f} (lowest {min(finals):.2f})",
        f"{statistics.mean(added for added, _ in gains):+.2f} ({statistics.mean(share for _, share in gains):.0%})",
        *(f"{statistics.mean(r['evals']['final']['by_kind'][kind]['success'] for r in results):.2f}" for kind in kinds),
    ]
    slowest, largest = max(r["wall_s"] for r in results), max(r["peak_memory_mb"] for r in results) / 1024
    lines.append("| " + " | ".join([*mean, f"at most {slowest:.0f} s", f"at most {largest:.1f} GB"]) + " |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Success while training, one faint line a seed (mean of 5 steps) and their mean; greedy test success as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=150)
    smooth = [_smooth([row["success"] for row in result["steps"]]) for result in results]
    length = min(len(line) for line in smooth)
    for result, line in zip(results, smooth, strict=True):
        axes.plot(range(1, len(line) + 1), line, color="#4c78a8", alpha=0.35, linewidth=1.2)
        axes.plot([0], [result["evals"]["warm start"]["success"]], "o", color="#9a9a9a", markersize=5)
        axes.plot([len(line) + 1], [result["evals"]["final"]["success"]], "o", color="#e45756", markersize=5)
    axes.plot(
        range(1, length + 1),
        [statistics.mean(line[i] for line in smooth) for i in range(length)],
        color="#1f3f6e",
        linewidth=2.4,
    )
    axes.set(
        xlabel="training step",
        ylabel="success",
        ylim=(-0.02, 1.02),
        title=f"Quickstart over {len(results)} seeds (SmolLM2-135M, CPU)",
    )
    axes.plot([], [], color="#1f3f6e", linewidth=2.4, label="while training, mean of seeds")
    axes.plot([], [], "o", color="#9a9a9a", label="held-out, greedy: warm start")
    axes.plot([], [], "o", color="#e45756", label="held-out, greedy: after RL")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def _smooth(values: list[float], window: int = 5) -> list[float]:
    return [statistics.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def publish(results: list[dict[str, Any]], picture: Path) -> None:
    """Put the table between its markers in README.md, and the picture where the README shows it."""
    readme = Path("README.md")
    before, rest = readme.read_text(encoding="utf-8").split("<!-- quickstart table -->")
    _, after = rest.split("<!-- /quickstart table -->")
    middle = f"<!-- quickstart table -->\n\n{table(results)}\n\n<!-- /quickstart table -->"
    readme.write_text(before + middle + after, encoding="utf-8")
    shutil.copyfile(picture, "docs/images/quickstart.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-quickstart"))
    parser.add_argument("--publish", action="store_true", help="put table and picture into README.md and docs/images")
    parser.add_argument("--read", action="store_true", help="take the runs that are in --out and train nothing")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in arguments.seeds:
        if arguments.read:
            results.append(read_run(arguments.out / f"seed-{seed}", seed))
        else:
            results.append(run_seed(arguments.config, seed, arguments.out, arguments.overrides))
        (arguments.out / "quickstart.json").write_text(json.dumps(results, indent=1))
        print(table(results), flush=True)
    draw(results, arguments.out / "quickstart.png")
    if arguments.publish:
        publish(results, arguments.out / "quickstart.png")
    versions = results[0]["versions"]
    print(f"\n{platform.processor() or platform.machine()}, {versions}")
    live_step_s = statistics.median(result["live_step_s"] or 0 for result in results)
    tokens_per_s = statistics.median(result["sampling_tokens_per_s"] for result in results)
    print(f"median live step {live_step_s:.1f} s, sampling {tokens_per_s:.0f} tokens/s")


if __name__ == "__main__":
    main()
