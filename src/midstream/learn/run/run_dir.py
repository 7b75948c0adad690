"""The directory of a run: path, lock, config and append-only logs. Readable by its owner only.

Layout: `config.yaml`, `run.json`, `metrics.jsonl`, `evals.jsonl`, `samples.jsonl`, `checks.json`, `store.sqlite`,
`checkpoints/`, `published/`, `canary.json`, `tensorboard/`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from midstream.core.errors import RunError
from midstream.core.files import private, sync
from midstream.core.secrets import without_secrets
from midstream.learn.config import TrainConfig

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for a full disk or quota."""


class RunDirectory:
    """Locks the directory for one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._created = _make_folder(path)
            self._lock = open(path / ".lock", "a+", opener=private)  # noqa: SIM115 (open for as long as the run)
        except OSError as error:
            raise RunError(
                f"cannot write to the run directory '{path}': {error.strerror}",
                "set trainer.run_dir to a place you can write to",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = os.fstat(self._lock.fileno()).st_nlink > 0
        except OSError:
            locked = False
        if not locked:
            self._lock.close()
            raise RunError(
                f"another process is using '{path}'", "wait for it to end, or set trainer.run_dir to another directory"
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def started(self) -> bool:
        """Whether the directory already contains a run."""
        return (self / "config.yaml").exists()

    def release(self) -> None:
        """Release the lock. A directory in which no run began is restored to its initial state."""
        if not self.started:
            (self / ".lock").unlink(missing_ok=True)
            for folder in self._created:
                with suppress(OSError):  # no longer empty
                    folder.rmdir()
        self._lock.close()

    def write(self, name: str, text: str) -> None:
        """Replace a file atomically."""
        temporary = self / f".{name}.tmp"
        try:
            with open(temporary, "w", encoding="utf-8", opener=private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self / name)
            sync(self.path)
        except OSError as error:
            raise disk_full_error(self / name, error) from None

    def write_json(self, name: str, data: Any) -> None:
        self.write(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append one line to a log."""
        try:
            with open(self / name, "a", encoding="utf-8", opener=private) as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise disk_full_error(self / name, error) from None

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Iterate over the lines of a log, skipping a line cut off by a kill."""
        if (self / name).exists():
            # splitlines would also split at line separators inside JSON strings.
            for line in (self / name).read_text(encoding="utf-8").split("\n"):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue

    def filter_log(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the lines of a log for which `keep` is false."""
        if (self / name).exists():
            self.write(name, "".join(json.dumps(row) + "\n" for row in self.rows(name) if keep(row)))

    def config_changes(self, config: dict[str, Any]) -> list[str]:
        """List the differences between `config` and the config of this run. Ignores secrets, which are not saved."""
        saved = yaml.safe_load((self / "config.yaml").read_text(encoding="utf-8"))
        return list(_differences(saved, without_secrets(json.loads(json.dumps(config))), ""))


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old!r} -> {new!r}"


def _make_folder(path: Path) -> list[Path]:
    """Create the folder `path` for its owner only. Returns the folders created, innermost first."""
    missing: list[Path] = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return missing


def disk_full_error(path: Path, error: OSError) -> RunError:
    """Return the error for a file that can no longer be written."""
    return RunError(
        f"cannot write '{path}': {error.strerror or error}",
        "free some disk space, then continue from the last checkpoint with --resume; earlier files are intact",
    )


def run_path(config: TrainConfig, resume: bool) -> Path:
    """Return `trainer.run_dir`, or a directory under `runs/`: the newest run of that name to `resume`, else an unused
    name."""
    if config.trainer.run_dir is not None:
        return Path(config.trainer.run_dir)
    root = Path("runs")
    own = re.compile(rf"{re.escape(config.name)}(-\d+)?")
    names = [path.name for path in root.iterdir() if own.fullmatch(path.name)] if root.is_dir() else []
    if resume:
        existing = [root / name for name in names if (root / name / "config.yaml").exists()]
        return max(existing, key=lambda path: path.stat().st_mtime, default=root / config.name)
    number = 1
    while (name := config.name if number == 1 else f"{config.name}-{number}") in names:
        number += 1
    return root / name
