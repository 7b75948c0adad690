"""Files that survive a power cut, and files that only their owner can read."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk: a file that was renamed is in its place after a power cut
    only once its folder was flushed too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: a file it makes can be read by its owner only."""
    return os.open(path, flags, 0o600)


def make_private(path: Path) -> None:
    """Let only its owner read the file or folder `path`."""
    path.chmod(0o700 if path.is_dir() else 0o600)
