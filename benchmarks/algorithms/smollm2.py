"""REINFORCE, PPO, GRPO and Flow-GRPO train SmolLM2-135M on the quickstart's tasks: success before and after.

    python benchmarks/algorithms/smollm2.py

The quickstart's config with another algorithm and, to save time, fewer steps; all with the same warm start and learning
rate. Only the quickstart's algorithm is tuned. Success is on the tasks of `val`, in percent with a 95 %
interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import midstream as ms

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ALGORITHMS: dict[str, dict[str, Any]] = {
    "reinforce": {"name": "reinforce", "loss": {"name": "reinforce"}},
    "ppo": {"name": "ppo"},
    "grpo": {"name": "grpo"},
    "flow_grpo": {"name": "flow_grpo"},
}


def train(name: str, steps: int, seed: int, run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the run's evaluations, and of its steps."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    kl = config["algorithm"].get("kl", {})
    config["algorithm"] = {"kl": kl, **ALGORITHMS[name]}
    config["trainer"] |= {
        "max_steps": steps,
        "eval_every": steps,
        "val_tasks": 48,
        "test_tasks": 0,
        "seed": seed,
        "run_dir": str(run),
    }
    ms.train(config, callbacks=())
    evaluations, rows = (
        [json.loads(line) for line in (run / file).read_text().splitlines()]
        for file in ("evals.jsonl", "metrics.jsonl")
    )
    return evaluations, [row for row in rows if row["stage"] == "rl"]


def percent(row: dict[str, Any]) -> str:
    return f"{100 * row['success']:.0f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    arguments = parser.parse_args()
    print("| algorithm | success of the first 3 steps | of the last 3 | on val after | steps | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            began = time.perf_counter()
            evaluations, rows = train(name, arguments.steps, arguments.seed, Path(folder, name))
            first, last = (sum(row["success"] for row in part) / len(part) for part in (rows[:3], rows[-3:]))
            print(
                f"| {name} | {100 * first:.0f} | {100 * last:.0f} | {percent(evaluations[-1])} "
                f"| {arguments.steps} | {time.perf_counter() - began:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
