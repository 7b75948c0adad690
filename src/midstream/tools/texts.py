"""Loads the texts that a config names: a JSON-lines file, a folder of documents, or a function of a module."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError

_FORMS = "a JSON-lines file, a folder, or package.module:attribute"


def load_texts(name: str, setting: str) -> list[dict[str, Any]]:
    """Return the texts as rows with `text`, `id`, and further fields of the file.

    `name` is a JSON-lines file, a folder of `.txt` and `.md` files, in which each paragraph is a text, or
    `package.module:attribute`: texts or such rows, or a function that returns them. Raises `ConfigError`, which names
    the `setting`, for anything else."""
    place = Path(name).expanduser()
    try:
        if place.is_dir():
            rows = list(_paragraphs(place))
        elif ":" in name and not place.exists():
            rows = list(_imported(name, setting))
        else:
            rows = list(_lines(place, setting))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: cannot read '{name}': {error}", f"give {_FORMS}") from None
    if not rows:
        raise ConfigError(f"{setting}: '{name}' holds no text", "a folder needs .txt or .md files")
    return rows


def _lines(path: Path, setting: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield _row(row, f"{path.name}:{number}", f"{setting}: line {number} of '{path}'")


def _paragraphs(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(one for one in folder.rglob("*") if one.suffix in (".txt", ".md") and one.is_file()):
        for number, paragraph in enumerate(re.split(r"\n\s*\n", path.read_text(encoding="utf-8")), 1):
            if paragraph.strip():
                yield {"text": " ".join(paragraph.split()), "id": f"{path.relative_to(folder)}#{number}"}


def _imported(name: str, setting: str) -> Iterator[dict[str, Any]]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{setting}: cannot import '{name}': {error}", f"give {_FORMS}") from None
    made = found() if callable(found) else found
    if isinstance(made, str | Mapping) or not isinstance(made, Iterable):
        raise ConfigError(f"{setting}: '{name}' gives a {type(made).__name__}", "it must give a list of texts")
    for number, row in enumerate(made, 1):
        yield _row({"text": row} if isinstance(row, str) else row, f"{name}:{number}", f"{setting}: text {number}")


def _row(row: Any, identity: str, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping) or not isinstance(row.get("text"), str):
        raise ConfigError(f"{where} is no JSON object with 'text'", "write one object a line")
    return {"id": identity, **row}
