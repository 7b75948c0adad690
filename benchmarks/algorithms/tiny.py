"""Every advantage estimator and every policy loss trains the model `tiny` on a small task: reward before and after.

    python benchmarks/algorithms/tiny.py

The task: reply in letters. The reward is the share of letters in what was said, the same for all, from the same start
and by the same learning rate; no algorithm is tuned. Two updates a step, so that ratios are not 1, where the algorithm
allows more than one. `distill` has the last checkpoint of the run of `grpo` for a teacher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import midstream as ms
from midstream.core.config import models_in
from midstream.learn.algorithms import AlgorithmConfig
from midstream.learn.losses import LossConfig

MEAN_OF = 3


@ms.component("letters")
def letters(answer: str | None) -> float:
    """Share of letters in the answer."""
    return sum(c.isalpha() for c in answer or "") / max(len(answer or ""), 1)


def train(algorithm: dict[str, Any], steps: int, seed: int, run: Path) -> list[float]:
    """The reward of each step."""
    named = {model.model_fields["name"].default: model for model in models_in(AlgorithmConfig)}
    ms.train(
        {
            "policy": {"model": "tiny", "tuning": "full"},
            "tasks": {"sources": [{"type": "direct"}]},
            "reward": {"components": {"letters": 1.0}, "success": "letters", "success_at": 0.9},
            "rollout": {"tasks_per_step": 8, "group_size": 8, "sampling": {"max_tokens": 4}},
            "algorithm": {"kl": {"coef": 0.0, "measure_every": 0, "reference": "start"}, **algorithm},
            "optimizer": {"lr": 2e-3},
            "trainer": {
                "max_steps": steps,
                "minibatches": 1 if getattr(named[algorithm["name"]], "one_update", False) else 2,
                "eval_every": 0,
                "test_tasks": 0,
                "save_every": steps,
                "seed": seed,
                "run_dir": str(run),
            },
        },
        callbacks=(),
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["reward"] for row in rows]


def runs(teacher: Path) -> dict[str, dict[str, Any]]:
    """What is run, by its name in the table."""
    names = [model.model_fields["name"].default for model in models_in(AlgorithmConfig)]
    losses = [model.model_fields["name"].default for model in models_in(LossConfig)]
    settings: dict[str, dict[str, Any]] = {
        "imitate": {"at_least": 0.9},
        "distill": {"kl": {"coef": 0.0, "measure_every": 0, "reference": str(teacher)}},
    }
    chosen = {name: {"name": name, **settings.get(name, {})} for name in names}
    chosen |= {"ppo, critic of its own": {"name": "ppo", "critic": {"model": "tiny"}}}
    return chosen | {
        f"grpo, loss {name}": {"name": "grpo", "loss": {"name": name}} for name in losses if name != "ppo_clip"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names in the table; distill needs grpo too")
    arguments = parser.parse_args()
    print(f"| algorithm | reward, first {MEAN_OF} steps | last {MEAN_OF} of {arguments.steps} | s |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "grpo", "checkpoints", f"step-{arguments.steps:06d}")
        for label, algorithm in runs(teacher).items():
            if arguments.only and label not in arguments.only:
                continue
            began = time.perf_counter()
            rewards = train(algorithm, arguments.steps, arguments.seed, Path(folder, label))
            first, last = statistics.mean(rewards[:MEAN_OF]), statistics.mean(rewards[-MEAN_OF:])
            print(f"| {label} | {first:.2f} | {last:.2f} | {time.perf_counter() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
