"""The configs that ship with the package, by name: `midstream train quickstart` works wherever it is installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")
"""In an installed package, and in a clone of the repository."""


def shipped_configs() -> dict[str, Path]:
    """Each config by its name without ending."""
    for folder in _FOLDERS:
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    return {}


def find_config(path: str | Path) -> Path:
    """`path`, or the shipped config of that name where there is no such file."""
    path = Path(path)
    return path if path.is_file() else shipped_configs().get(str(path), path)
