"""Runs the examples that train SmolLM2, as `python examples/NAME.py` does, and tabulates held-out scores.

    python -m benchmarks.agent_examples --out runs/examples

A run that is complete in --out is not repeated. Prints a table for each page; --publish puts them into docs/planning.md
and docs/teams.md. Success has Wilson's interval over tasks. The difference is paired by task; its interval is a
bootstrap over what the tasks are about, because tasks about the same thing are not independent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from midstream.core.statistics import Interval, wilson
from midstream.core.types import Task

ROOT = Path(__file__).parents[1]
PAGES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "docs/planning.md": {"customer_service": (), "news_alert": (), "recommender": ()},
    "docs/teams.md": {"manager": ("--train",), "peers": ("--train",), "research_team": ("--train",)},
}
"""Arguments of the examples by the page that shows them."""
MARKS = ("<!-- example table -->", "<!-- /example table -->")
LABELS = {"base": "test-base", "warm start": "test-warm-start", "final": "test-final"}
"""Evaluations, by how the uids of their trajectories begin."""

Scores = Mapping[str, float]
"""Success by task."""


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of the evaluations of a run on held-out tasks, what each task is about, and processor time."""

    scores: Mapping[str, Scores]
    about: Mapping[str, str]
    cpu_s: float

    @classmethod
    def read(cls, run: Path) -> Result:
        from midstream.record.store import Store

        scores: dict[str, dict[str, float]] = defaultdict(dict)
        about: dict[str, str] = {}
        with Store(run / "store.sqlite", read_only=True) as store:
            for made in store.trajectories.iterate(channel="test"):
                label = next(label for label, begins in LABELS.items() if made.uid.startswith(begins))
                scores[label][made.task.id] = float((made.reward or 0.0) >= 1.0)
                about[made.task.id] = _about(made.task)
        return cls(scores, about, float((run / "cpu_s").read_text()))

    def difference(self, before: str, after: str) -> Interval:
        """95 % interval of the mean paired difference, resampling what tasks are about."""
        import numpy as np

        clusters: dict[str, list[float]] = defaultdict(list)
        for task, value in self.scores[after].items():
            clusters[self.about[task]].append(value - self.scores[before][task])
        sums = np.array([sum(values) for values in clusters.values()])
        sizes = np.array([len(values) for values in clusters.values()])
        drawn = np.random.default_rng(0).integers(0, len(sums), size=(10_000, len(sums)))
        low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
        return Interval(float(low), float(high))

    def row(self, name: str, labels: Sequence[str]) -> str:
        """Markdown row: success in each evaluation, and the differences of the last one to the others."""
        cells = [f"`{name}.py`", f"{len(self.about)} about {len(set(self.about.values()))} things"]
        cells += [_share(self.scores[label]) for label in labels]
        for label in labels[:-1]:
            gain = mean(self.scores[labels[-1]].values()) - mean(self.scores[label].values())
            interval = self.difference(label, labels[-1])
            cells.append(f"{gain:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})")
        return f"| {' | '.join([*cells, f'{self.cpu_s / 60:.1f} min'])} |"


def train(name: str, arguments: Sequence[str], out: Path) -> Path:
    """Run an example in `out` unless it has; returns its run directory, with the processor time in `cpu_s`."""
    run = out / "runs" / name
    if not (run / "cpu_s").exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, ROOT / "examples" / f"{name}.py", *arguments]
        process = subprocess.Popen(command, cwd=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name}: exit status {os.waitstatus_to_exitcode(status)}")
        (run / "cpu_s").write_text(f"{usage.ru_utime + usage.ru_stime:.1f}\n")
    return run


def table(out: Path, examples: Mapping[str, Sequence[str]]) -> str:
    """Markdown table of examples that have the same evaluations."""
    results = {name: Result.read(train(name, arguments, out)) for name, arguments in examples.items()}
    labels = [label for label in LABELS if all(label in result.scores for result in results.values())]
    head = ["example", "held-out tasks", *labels, *(f"{label} to final" for label in labels[:-1]), "processor time"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(result.row(name, labels) for name, result in results.items())])


def publish(page: Path, text: str) -> None:
    """Put a table between its markers in a page. Rows of examples that are not in it stay. Raises `SystemExit` if the
    page's table has other columns."""
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    shown, after = rest.split(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{_merged(shown, text)}\n\n{MARKS[1]}{after}", encoding="utf-8")


def _merged(old: str, new: str) -> str:
    """The `new` table, with the rows of the `old` one that it lacks, ordered by example."""
    head, rule, *rows = new.strip().splitlines()
    known = old.strip().splitlines()
    if known and known[0] != head:
        raise SystemExit(f"the page's table has other columns; run all its examples\n{known[0]}\n{head}")
    by_example = {row.split("|")[1].strip(): row for row in [*known[2:], *rows]}
    return "\n".join([head, rule, *(by_example[name] for name in sorted(by_example))])


def _about(task: Task) -> str:
    """What a task is about: its metadata says so, or the number at the end of its id."""
    return str(task.metadata.get("about") or task.id.rpartition("-")[2])


def _share(scores: Scores) -> str:
    right, n = sum(scores.values()), len(scores)
    interval = wilson(right, n)
    return f"{right / n:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def main() -> None:
    names = [name for examples in PAGES.values() for name in examples]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="examples to run")
    parser.add_argument("--publish", action="store_true", help="write the rows of the examples run into docs/")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for page, examples in PAGES.items():
        chosen = {name: given for name, given in examples.items() if name in arguments.only}
        if not chosen:
            continue
        made = table(out, chosen)
        print(f"{made}\n", flush=True)
        if arguments.publish:
            publish(ROOT / page, made)


if __name__ == "__main__":
    main()
