"""Files that survive a power cut, and files that only their owner can read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty private folder to write files into. When the context ends it replaces `folder`, flushed to disk;
    after an error it is deleted, and `folder` is as it was.

    A reader sees the old folder or the whole new one, never part of one; between two renames it sees none. A process
    killed there leaves the old folder aside: the next replacement, or `recover_folders`, puts it back."""
    temporary, old = folder.with_name(f".{folder.name}.tmp"), _aside(folder)
    _recover(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for parent in reversed([path for path in (temporary, *temporary.parents) if not path.exists()]):
            parent.mkdir(mode=0o700, exist_ok=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            make_private(path)
            sync(path)
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
        sync(folder.parent)
    except BaseException:
        _recover(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folders(parent: Path) -> None:
    """Put back the folders in `parent` that `replacing_folder` had moved aside when its process was killed. Only their
    writer may call this."""
    for old in parent.glob(".*.old"):
        _recover(parent / old.name.removeprefix(".").removesuffix(".old"))


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _recover(folder: Path) -> None:
    old = _aside(folder)
    if old.exists() and not folder.exists():
        old.replace(folder)
        sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
