"""The directory of a run: who holds it, what it was configured as, and its append-only logs. Only
its owner can read it.

Layout: `config.yaml`, `run.json`, `metrics.jsonl`, `evals.jsonl`, `samples.jsonl`, `checks.json`, `store.sqlite`,
`checkpoints/`, `tensorboard/`."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from midstream.core.errors import RunError
from midstream.core.files import private, sync
from midstream.core.secrets import without_secrets

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room left."""


class RunDirectory:
    """Holds the directory for one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._made = _make(path)
            self._lock = open(path / ".lock", "a+", opener=private)  # noqa: SIM115 (held as long as the run)
        except OSError as error:
            raise RunError(
                f"cannot write to the run directory '{path}': {error.strerror}",
                "set trainer.run_dir to a place you can write to",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(self._lock.fileno()).st_nlink > 0
        except OSError:
            held = False
        if not held:
            self._lock.close()
            raise RunError(
                f"another process is using '{path}'", "wait for it, or set trainer.run_dir to another directory"
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def started(self) -> bool:
        """True when a run lives here already."""
        return (self / "config.yaml").exists()

    def release(self) -> None:
        """Let go of the directory; one in which no run began is left as it was found."""
        if not self.started:
            (self / ".lock").unlink(missing_ok=True)
            for folder in self._made:
                with suppress(OSError):  # somebody put something there
                    folder.rmdir()
        self._lock.close()

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole: never half-written."""
        temporary = self / f".{name}.tmp"
        try:
            with open(temporary, "w", encoding="utf-8", opener=private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self / name)
            sync(self.path)
        except OSError as error:
            raise full(self / name, error) from None

    def write_json(self, name: str, data: Any) -> None:
        self.write(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one line to a log."""
        try:
            with open(self / name, "a", encoding="utf-8", opener=private) as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise full(self / name, error) from None

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Lines of a log; one cut off by a kill is passed over."""
        if (self / name).exists():
            # Not splitlines, which also splits at characters that a JSON string may hold as they are.
            for line in (self / name).read_text(encoding="utf-8").split("\n"):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue

    def keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines of a log that are not `wanted`."""
        if (self / name).exists():
            self.write(name, "".join(json.dumps(row) + "\n" for row in self.rows(name) if wanted(row)))

    def config_changes(self, config: dict[str, Any]) -> list[str]:
        """How `config` differs from the one this run began with, a line each. Secrets, which are not kept, may."""
        saved = yaml.safe_load((self / "config.yaml").read_text(encoding="utf-8"))
        return list(_differences(saved, without_secrets(json.loads(json.dumps(config))), ""))


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old!r} -> {new!r}"


def _make(path: Path) -> list[Path]:
    """Make the folder `path`, for its owner only, and return those that were not there, innermost first."""
    missing: list[Path] = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return missing


def full(path: Path, error: OSError) -> RunError:
    """The error for a file that cannot be written any more."""
    return RunError(
        f"cannot write '{path}': {error.strerror or error}",
        "free some disk space, then go on from the last checkpoint with --resume; what was written before is intact",
    )
