"""Mutation tests of parity: each mutation of our source in `mutations.yaml`, one at a time in a copy, must turn it
red.

    python -m benchmarks.parity.mutations

Levels A, B and C run against the copy, each until its first red line; the first level that is red ends the run. Exit
code 0 when every mutation was noticed, 1 when one was not, 2 when one no longer fits the source or the unchanged copy
is red.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = Path("src/midstream")
NAMED = {"A": 2, "B": 3, "C": 1}
"""Cells of a line that say what was compared, by level."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old`, which `file` under `src/midstream` holds once, becomes `new`."""

    what: str
    file: str
    old: str
    new: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutations", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="try only mutations that name one of these")
    wanted = parser.parse_args().words
    known = [Mutation(**each) for each in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))]
    chosen = [m for m in known if not wanted or any(word.lower() in m.what.lower() for word in wanted)]
    stale = [m.what for m in known if (ROOT / PACKAGE / m.file).read_text("utf-8").count(m.old) != 1]
    if stale:
        print("no longer fit the source:", *stale, sep="\n  ")
        return 2
    print("| mutation | file | turned red |\n| --- | --- | --- |")
    if (found := _try(None)) is not None:
        print(f"| none | | {found} |")
        return 2
    print("| none | | nothing |", flush=True)
    missed = 0
    for mutation in chosen:
        found = _try(mutation)
        missed += found is None
        print(f"| {mutation.what} | `{mutation.file}` | {found or 'NOTHING'} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} mutations turned parity red")
    return 1 if missed else 0


def _try(mutation: Mutation | None) -> str | None:
    """The level and the line that a mutation turned red, or how it broke; None when all stayed green."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        source = Path(name) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            file = Path(name) / PACKAGE / mutation.file
            file.write_text(file.read_text("utf-8").replace(mutation.old, mutation.new), "utf-8")
        command = [sys.executable, "-m", "benchmarks.parity", "--levels", "A", "B", "C", "--stop-at-red"]
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    if ran.returncode == 0:
        return None
    lines = ran.stdout.splitlines()
    level = next((line[4] for line in reversed(lines) if line.startswith("### ")), "?")
    red = [line.strip("| ").split(" | ") for line in lines if line.endswith("| RED |")]
    if red:
        return f"{level}: {', '.join(red[0][: NAMED[level]])}"
    return f"{level}: {(ran.stderr.strip().splitlines() or ['?'])[-1]}"


if __name__ == "__main__":
    sys.exit(main())
