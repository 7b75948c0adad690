"""Trains the three team examples with SmolLM2, and tabulates held-out scores before and after.

    python -m benchmarks.team_examples --out runs/teams
    python -m benchmarks.team_examples --out runs/teams --only peers

A run that is complete in --out is not repeated. Success has Wilson's interval over tasks. The difference that
reinforcement learning makes is that between the warm start and the end, paired by task; its interval is a bootstrap
over countries, because tasks about the same country are not independent.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import mean

from midstream.core.statistics import Interval, wilson

EXAMPLES = ("manager", "peers", "research_team")
LABELS = ("base", "warm start", "final")
Scores = Mapping[str, float]
"""Success by task."""


def train(name: str, run: Path, overrides: Sequence[str]) -> None:
    """Train an example in `run`; notes its processor time there as `cpu_s`."""
    import midstream as ms

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    config = ms.load_config(importlib.import_module(name).training(), overrides)
    trainer = config.trainer.model_copy(update={"run_dir": str(run), "threads": 1})
    began = getrusage(RUSAGE_SELF).ru_utime
    if ms.train(config.model_copy(update={"trainer": trainer})).status != "finished":
        raise KeyboardInterrupt
    (run / "cpu_s").write_text(f"{getrusage(RUSAGE_SELF).ru_utime - began:.0f}\n")


def scores(run: Path) -> dict[str, Scores]:
    """Success by task of each evaluation on the held-out split."""
    from midstream.record.store import Store

    found: dict[str, dict[str, float]] = {label: {} for label in LABELS}
    with Store(run / "store.sqlite", read_only=True) as store:
        for made in store.trajectories.iterate(channel="test"):
            label = next(label for label in LABELS if made.uid.startswith(f"test-{label.replace(' ', '-')}"))
            found[label][made.task.id] = float(made.reward is not None and made.reward >= 1)
    return {label: found[label] for label in LABELS}


def difference(before: Scores, after: Scores) -> Interval:
    """95 % interval of the mean paired difference, resampling countries: the number at the end of a task's id."""
    import numpy as np

    clusters: dict[str, list[float]] = {}
    for task, value in after.items():
        clusters.setdefault(task.rpartition("-")[2], []).append(value - before[task])
    sums = np.array([sum(values) for values in clusters.values()])
    sizes = np.array([len(values) for values in clusters.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), size=(10_000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return Interval(float(low), float(high))


def row(name: str, run: Path) -> str:
    """Markdown row of one example."""
    base, warm, final = scores(run).values()
    gain, interval = mean(final.values()) - mean(warm.values()), difference(warm, final)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    cells = [
        f"[`{name}.py`](../examples/{name}.py)",
        str(len(final)),
        *map(_share, (base, warm, final)),
        f"{gain:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})",
        f"{max(steps)} steps, {float((run / 'cpu_s').read_text()) / 60:.1f} min",
    ]
    return f"| {' | '.join(cells)} |"


def _share(values: Scores) -> str:
    right, n = sum(values.values()), len(values)
    low, high = wilson(right, n)
    return f"{right / n:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/teams"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, default=EXAMPLES, help="examples to train")
    parser.add_argument("--set", nargs="*", default=(), metavar="KEY=VALUE", help="changes to the config")
    given = parser.parse_args()
    print("| example | held-out tasks | base | warm start | after RL | by RL | processor time |")
    print("|" + " --- |" * 7)
    for name in given.only:
        run = given.out.resolve() / name
        if not (run / "cpu_s").exists():
            train(name, run, given.set)
        print(row(name, run), flush=True)


if __name__ == "__main__":
    main()
