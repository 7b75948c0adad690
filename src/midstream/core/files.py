"""Files that survive a power cut, and files that only their owner can read."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk. A rename survives a power cut only once its folder is flushed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private(path: str, flags: int) -> int:
    """`opener` for `open` that creates files readable only by their owner."""
    return os.open(path, flags, 0o600)


def make_private(path: Path) -> None:
    """Make the file or folder `path` readable only by its owner."""
    path.chmod(0o700 if path.is_dir() else 0o600)
