"""Reads run directories for the curve, the report and the command line.

Reads the text files only, never the store or a checkpoint, and writes nothing. The unfinished last line of a killed run
is ignored.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.core.errors import RunError, nearest

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Contents of a run's files. `config` is YAML text; rows are in the order of training, one per step."""

    path: Path
    info: Row
    config: str
    metrics: list[Row]
    evals: list[Row]
    samples: list[Row]

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.path.name)

    @property
    def status(self) -> str:
        return str(self.info.get("status") or "unknown")

    @property
    def rl(self) -> list[Row]:
        """Rows of the reinforcement-learning stage."""
        return [row for row in self.metrics if row.get("stage", "rl") == "rl"]

    def evaluation(self, label: str, split: str | None = None) -> Row | None:
        """Return the last evaluation labelled `label`, on `split` if given."""
        found = [row for row in self.evals if row.get("label") == label and split in (None, row.get("split"))]
        return found[-1] if found else None


def load_run(path: str | Path) -> Run:
    """Read the run in directory `path`; raises `RunError` if it is not a run."""
    path = Path(path)
    if not is_run(path):
        raise RunError(f"'{path}' is not a run directory: it has no run.json and no metrics.jsonl")
    info = _read_info(path / "run.json")
    if info.get("status") == "running" and not _is_held(path):
        info["status"] = "interrupted"
    return Run(
        path=path,
        info=info,
        config=_read_text(path / "config.yaml"),
        metrics=_last_per_step(read_rows(path / "metrics.jsonl")),
        evals=read_rows(path / "evals.jsonl"),
        samples=read_rows(path / "samples.jsonl"),
    )


def is_run(path: Path) -> bool:
    """Return whether `path` is a run directory."""
    return (path / "run.json").is_file() or (path / "metrics.jsonl").is_file()


def list_runs(root: str | Path) -> list[Path]:
    """Return the run directories in `root`, most recently modified first."""
    root = Path(root)
    found = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    return sorted(found, key=_modified, reverse=True)


def find_run(name: str, root: str | Path) -> Path:
    """Find the directory of run `name`: a path, the name of a run in `root`, an unambiguous prefix, or `last`."""
    if is_run(Path(name)):
        return Path(name)
    runs = list_runs(root)
    if name == "last" and runs:
        return runs[0]
    exact = [path for path in runs if path.name == name]
    matching = exact or [path for path in runs if path.name.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise RunError(f"'{name}' could be any of {', '.join(sorted(path.name for path in matching))}")
    if not runs:
        raise RunError(f"no run '{name}', and no runs in '{root}'", "start one with midstream train CONFIG")
    raise RunError(f"no run '{name}' in '{root}'", nearest(name, (path.name for path in runs)))


def read_rows(path: Path) -> list[Row]:
    """Read the JSON objects of a `.jsonl` file. A missing file has no rows; an unfinished last line is ignored."""
    lines = _read_text(path).split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            # A run killed during a write and then resumed also leaves a broken line in the middle.
            if number == len(lines) or _is_cut(line):
                continue
            raise RunError(f"{path}, line {number}: not JSON ({error})") from None
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _is_cut(line: str) -> bool:
    return line.startswith("{") and not line.rstrip().endswith("}")


def _last_per_step(rows: list[Row]) -> list[Row]:
    """Keep the last row of each step: a resumed run repeats the steps after its last checkpoint."""
    by_step: dict[tuple[str, int, int], Row] = {}
    for row in rows:
        by_step[str(row.get("stage", "rl")), int(row.get("step") or 0), int(row.get("update") or 0)] = row
    return [by_step[key] for key in sorted(by_step, key=lambda key: (key[0] == "rl", *key[1:]))]


def _read_info(path: Path) -> Row:
    try:
        info = json.loads(_read_text(path) or "{}")
    except ValueError:
        return {"status": "unreadable"}
    return info if isinstance(info, dict) else {"status": "unreadable"}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror}") from None


def _is_held(path: Path) -> bool:
    """Return whether a process holds the run's lock. The status of a killed run stays `running`."""
    try:
        with (path / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _modified(path: Path) -> float:
    files = [path / name for name in ("run.json", "metrics.jsonl") if (path / name).is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)
