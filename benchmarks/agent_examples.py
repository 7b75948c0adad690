"""Runs the agent examples that train SmolLM2, as `python examples/NAME.py` does, and tabulates held-out scores.

    python -m benchmarks.agent_examples --out runs/examples

A run that is complete in --out is not repeated. Prints a table; --publish puts it into docs/planning.md. Success has
Wilson's interval over tasks. The difference is paired by task; its interval is a bootstrap over what the tasks are
about, because tasks about the same thing are not independent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from midstream.core.statistics import Interval, wilson

ROOT = Path(__file__).parents[1]
EXAMPLES = ("customer_service", "news_alert", "recommender")
PAGE = ROOT / "docs" / "planning.md"
MARKS = ("<!-- example table -->", "<!-- /example table -->")


def train(name: str, out: Path) -> Path:
    """Run an example in `out` unless it has; returns its run directory, with the processor time in `cpu_s`."""
    run = out / "runs" / name
    if not (run / "cpu_s").exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, ROOT / "examples" / f"{name}.py"], cwd=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name}: exit status {os.waitstatus_to_exitcode(status)}")
        (run / "cpu_s").write_text(f"{usage.ru_utime + usage.ru_stime:.1f}\n")
    return run


def scores(run: Path) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Success by held-out task before and after training, and what each task is about."""
    from midstream.record.store import Store

    found: dict[str, dict[str, float]] = {"base": {}, "final": {}}
    about: dict[str, str] = {}
    with Store(run / "store.sqlite", read_only=True) as store:
        for one in store.trajectories.iterate(channel="test"):
            label = next(label for label in found if label in one.uid)
            found[label][one.task.id] = float((one.reward or 0.0) >= 1.0)
            about[one.task.id] = str(one.task.metadata["about"])
    assert found["base"].keys() == found["final"].keys()
    return found["base"], found["final"], about


def difference(before: Mapping[str, float], after: Mapping[str, float], about: Mapping[str, str]) -> Interval:
    """95 % interval of the mean paired difference, resampling what tasks are about."""
    import numpy as np

    clusters: dict[str, list[float]] = defaultdict(list)
    for task, value in after.items():
        clusters[about[task]].append(value - before[task])
    sums = np.array([sum(values) for values in clusters.values()])
    sizes = np.array([len(values) for values in clusters.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), size=(10_000, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def row(name: str, run: Path) -> str:
    """Markdown row of one example."""
    before, after, about = scores(run)
    n, low_high = len(after), difference(before, after, about)
    gain = mean(after.values()) - mean(before.values())
    minutes = float((run / "cpu_s").read_text()) / 60
    cells = [
        f"`{name}.py`",
        f"{n} about {len(set(about.values()))} things",
        _share(before.values()),
        _share(after.values()),
        f"{gain:+.2f} ({low_high.low:+.2f} to {low_high.high:+.2f})",
        f"{minutes:.1f} min",
    ]
    return f"| {' | '.join(cells)} |"


def _share(values: Any) -> str:
    right, n = sum(values), len(values)
    interval = wilson(right, n)
    return f"{right / n:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def table(out: Path, names: Sequence[str]) -> str:
    """Markdown table of the examples."""
    head = ["| example | held-out tasks | before | after | difference | processor time |", "|" + " --- |" * 6]
    return "\n".join([*head, *(row(name, train(name, out)) for name in names)])


def publish(text: str) -> None:
    """Put the table between its markers in docs/planning.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, default=EXAMPLES, help="examples to run")
    parser.add_argument("--publish", action="store_true", help="write the table into docs/planning.md")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    made = table(out, arguments.only)
    print(made)
    if arguments.publish:
        publish(made)


if __name__ == "__main__":
    main()
