"""Trains `configs/react.yaml` with several seeds, then evaluates each trained agent with every tool taken away.

    make bench-react ARGS="--seeds 0 1 2"

Each seed is a run of its own in a fresh process, as `midstream train` makes it. Prints two tables, and writes
`learning.json` and `learning.png` into --out. --publish puts both
tables into docs/tools.md and the picture into docs/images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tools.sandbox import processor

from midstream.core.statistics import wilson

LABELS = {"base": "base", "warm start": "warm start", "final": "after RL"}


def train(seed: int, run_dir: Path, config: str, overrides: Sequence[str]) -> None:
    """Train once in a process of its own, or finish the run in `run_dir`."""
    if (run_dir / "wall_s").exists():
        return
    command = [sys.executable, "-m", "midstream", "train", config, f"trainer.seed={seed}", f"tasks.seed={seed}"]
    resume = ["--resume"] if run_dir.exists() else []
    began = time.perf_counter()
    subprocess.run([*command, *resume, f"trainer.run_dir={run_dir}", *overrides], check=True)
    (run_dir / "wall_s").write_text(f"{time.perf_counter() - began:.1f}\n")


def without(run_dir: Path, tool: str) -> dict[str, Any]:
    """Evaluate the trained agent of `run_dir` on its test tasks without `tool`."""
    import yaml

    from midstream.api import evaluate

    path = run_dir / f"without-{tool}.json"
    if not path.exists():
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        tools = [name for name in config["flow"]["tools"] if name != tool]
        settings = {name: value for name, value in config["flow"]["tool_settings"].items() if name != tool}
        row = evaluate(
            run=run_dir,
            overrides=[f"flow.tools={json.dumps(tools)}", f"flow.tool_settings={json.dumps(settings)}"],
            n=config["trainer"]["test_tasks"],
            trust=True,
        )
        path.write_text(json.dumps({"success": row["success"], "n": row["n"], "by_kind": row["by_kind"]}))
    return json.loads(path.read_text())


def read_run(run_dir: Path) -> dict[str, Any]:
    """Evaluations on test by label, and success of each training step."""
    evals = {row["label"]: row for row in _rows(run_dir / "evals.jsonl") if row["split"] == "test"}
    steps = [row["success"] for row in _rows(run_dir / "metrics.jsonl") if row["stage"] == "rl"]
    return {"evals": evals, "steps": steps, "wall_s": float((run_dir / "wall_s").read_text())}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pooled(rows: Sequence[dict[str, Any]]) -> str:
    """Success over the tasks of all seeds, with its 95 % interval."""
    n = sum(row["n"] for row in rows)
    right = round(sum(row["success"] * row["n"] for row in rows))
    low, high = wilson(right, n)
    return f"{right / n:.2f} ({low:.2f}-{high:.2f})" if n else "-"


def seeds_table(results: dict[int, dict[str, Any]]) -> str:
    """Markdown: success of each seed before and after, and over the tasks of all seeds."""
    lines = ["| seed | base | warm start | after RL | by RL | wall |", "|" + " --- |" * 6]
    for seed, result in results.items():
        base, warm, final = (result["evals"][label]["success"] for label in LABELS)
        lines.append(
            f"| {seed} | {base:.2f} | {warm:.2f} | {final:.2f} | {final - warm:+.2f} | {result['wall_s']:.0f} s |"
        )
    pools = [pooled([result["evals"][label] for result in results.values()]) for label in LABELS]
    gain = statistics.mean(
        r["evals"]["final"]["success"] - r["evals"]["warm start"]["success"] for r in results.values()
    )
    return "\n".join([*lines, f"| all tasks | {pools[0]} | {pools[1]} | {pools[2]} | {gain:+.2f} | |"])


def tools_table(results: dict[int, dict[str, Any]]) -> str:
    """Markdown: success of the trained agents with all tools, and without each of them, by kind of task."""
    kinds = sorted(next(iter(results.values()))["evals"]["final"]["by_kind"])
    lines = ["| tools | success | " + " | ".join(kinds) + " |", "|" + " --- |" * (len(kinds) + 2)]
    cases: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"all": lambda result: result["evals"]["final"]}
    for tool in next(iter(results.values()))["without"]:
        cases[f"without `{tool}`"] = lambda result, tool=tool: result["without"][tool]
    for name, row_of in cases.items():
        rows = [row_of(result) for result in results.values()]
        by_kind = [pooled([row["by_kind"][kind] for row in rows if kind in row["by_kind"]]) for kind in kinds]
        lines.append(f"| {name} | {pooled(rows)} | " + " | ".join(cell.partition(" ")[0] for cell in by_kind) + " |")
    return "\n".join(lines)


def draw(results: dict[int, dict[str, Any]], path: Path) -> None:
    """Success while training, one faint line a seed and their mean; greedy test success as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=150)
    lines = [_smooth(result["steps"]) for result in results.values()]
    length = min(map(len, lines))
    for result, line in zip(results.values(), lines, strict=True):
        axes.plot(range(1, len(line) + 1), line, color="#4c78a8", alpha=0.35, linewidth=1.2)
        axes.plot([0], [result["evals"]["warm start"]["success"]], "o", color="#9a9a9a", markersize=5)
        axes.plot([len(line) + 1], [result["evals"]["final"]["success"]], "o", color="#e45756", markersize=5)
    mean = [statistics.mean(line[step] for line in lines) for step in range(length)]
    axes.plot(range(1, length + 1), mean, color="#1f3f6e", linewidth=2.4, label="while training, mean of seeds")
    axes.plot([], [], "o", color="#9a9a9a", label="held-out, greedy: warm start")
    axes.plot([], [], "o", color="#e45756", label="held-out, greedy: after RL")
    axes.set(xlabel="training step", ylabel="success", ylim=(-0.02, 1.02))
    axes.set_title(f"react learns to use search, memory and Python (SmolLM2-135M, CPU, seeds: {len(results)})")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def _smooth(values: Sequence[float], window: int = 3) -> list[float]:
    return [statistics.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def publish(results: dict[int, dict[str, Any]], picture: Path) -> None:
    """Put both tables between their markers in docs/tools.md, and the picture where that page shows it."""
    page = Path("docs/tools.md")
    before, rest = page.read_text(encoding="utf-8").split("<!-- react tables -->")
    _, after = rest.split("<!-- /react tables -->")
    tables = f"{seeds_table(results)}\n\n{tools_table(results)}"
    page.write_text(f"{before}<!-- react tables -->\n\n{tables}\n\n<!-- /react tables -->{after}", encoding="utf-8")
    shutil.copyfile(picture, "docs/images/react.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/react.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-react"))
    parser.add_argument("--publish", action="store_true", help="put tables and picture into docs/")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    results: dict[int, dict[str, Any]] = {}
    for seed in arguments.seeds:
        run_dir = arguments.out / f"seed-{seed}"
        train(seed, run_dir, arguments.config, arguments.overrides)
        results[seed] = read_run(run_dir)
        results[seed]["without"] = {tool: without(run_dir, tool) for tool in ("python", "search", "memory_retrieve")}
        (arguments.out / "learning.json").write_text(json.dumps(results, indent=1))
    print(f"{seeds_table(results)}\n\n{tools_table(results)}")
    draw(results, arguments.out / "learning.png")
    if arguments.publish:
        publish(results, arguments.out / "learning.png")


if __name__ == "__main__":
    main()
