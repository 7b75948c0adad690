"""Trains SmolLM2 on environments of other projects, unchanged, with reinforcement learning only: 20 steps each.

    make bench-environments

`verifiers` trains on `echo_v1`, a taskset in the source distribution of the installed verifiers, which pip downloads.
Prints the mean reward of each step, and a table of greedy evaluations on test tasks. An interrupted run is resumed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIXTURES = "tests/v1/fixtures"
WORDS = [
    *("amber", "canoe", "velvet", "otter", "copper", "lantern", "maple", "falcon", "indigo", "harbor"),
    *("cedar", "walrus", "silver", "garden", "yellow", "rocket", "purple", "castle", "golden", "pencil"),
    *("winter", "banana", "orange", "turtle", "violet", "basket", "marble", "pepper", "window", "ribbon"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the named environment, or finish its run, and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", choices=("reasoning_gym", "verifiers"))
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="settings as key=value")
    given = parser.parse_intermixed_args(arguments)
    overrides = [f"trainer.run_dir={given.run_dir}", f"trainer.seed={given.seed}", *given.overrides]
    paths = [os.environ.get("PYTHONPATH", "")]
    if given.environment == "verifiers":
        paths.insert(0, str(fixtures(given.run_dir.with_name("verifiers-source"))))
        overrides.append(f"tasks.sources={json.dumps([echo()])}")
    train(HERE / f"{given.environment}.yaml", overrides, os.pathsep.join(filter(None, paths)), given.run_dir.exists())
    print(report(given.run_dir))


def train(config: Path, overrides: Sequence[str], python_path: str, resume: bool) -> None:
    """Run `midstream train` in a process of its own."""
    command = [sys.executable, "-m", "midstream", "train", str(config), *overrides, *(["--resume"] if resume else [])]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": python_path}, check=True)


def echo() -> dict[str, Any]:
    """The task source: every ordered pair of different words as a phrase to repeat, shuffled."""
    phrases = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)]
    random.Random(0).shuffle(phrases)
    return {"type": "verifiers", "env": "echo_v1", "settings": {"taskset": {"phrases": phrases}}}


def fixtures(folder: Path) -> Path:
    """Return the folder of verifiers' own test tasksets, downloaded into `folder` if it is not there."""
    version = importlib.metadata.version("verifiers")
    unpacked = folder / f"verifiers-{version}"
    if not unpacked.exists():
        wanted = ["--no-deps", "--no-binary", "verifiers", f"verifiers=={version}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *wanted], check=True)
        with tarfile.open(folder / f"{unpacked.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return (unpacked / FIXTURES).resolve()


def report(run_dir: Path) -> str:
    """Mean reward of each step, and a Markdown table of the evaluations with 95 % intervals."""
    rewards = [f"{row['reward']:.2f}" for row in _rows(run_dir / "metrics.jsonl") if row["stage"] == "rl"]
    lines = [
        "mean reward by step: " + " ".join(rewards),
        "",
        "| | n | mean reward | success |",
        "| --- | --- | --- | --- |",
    ]
    for row in _rows(run_dir / "evals.jsonl"):
        kinds = {"all": row} | (row["by_kind"] if len(row["by_kind"]) > 1 else {})
        for kind, part in kinds.items():
            reward = f"{row['reward']:.2f} ({row['reward_low']:.2f}-{row['reward_high']:.2f})" if part is row else ""
            success = f"{part['success']:.2f} ({part['low']:.2f}-{part['high']:.2f})"
            lines.append(f"| {row['label']}, {kind} | {part['n']} | {reward} | {success} |")
    return "\n".join(lines)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
