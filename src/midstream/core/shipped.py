"""Finds the configs shipped with the package by name, so that `midstream train quickstart` works in any directory."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")
"""Location in an installed package, and in a clone of the repository."""


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the shipped configs by name (file name without suffix)."""
    for folder in _FOLDERS:
        if configs := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return configs
    return {}


def find_config(path: str | Path) -> Path:
    """Return `path` if it is a file, else the path of the shipped config with that name, else `path`."""
    path = Path(path)
    return path if path.is_file() else shipped_configs().get(str(path), path)
