"""Task sets from files and, with `datasets` installed, from the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from midstream.core.errors import TaskError
from midstream.core.types import Task
from midstream.tasks.row_files import rows, stem
from midstream.tasks.rows import RowFields, read_row
from midstream.tasks.taskset import FiniteTaskSet, TaskSet

NO_FIELDS = RowFields()
_HUB_SPLITS = {"train": "train", "validation": "val", "val": "val", "dev": "val", "test": "test"}


def file_tasks(
    path: str | Path,
    fields: RowFields = NO_FIELDS,
    kind: str | None = None,
    seed: int = 0,
    only: Mapping[str, str] | None = None,
) -> TaskSet:
    """Load the tasks of a file: JSON lines, CSV or Parquet, one task per row; with `only`, of rows with these values.

    A row's split is `fields.split`, else its own field `split`, else by hash of its question. Raises `TaskError` with
    file, line and field at the first invalid line.
    """
    path = Path(path)
    name = stem(path)
    tasks = (
        read_row(row, where, fields, kind or name, f"{name}-{number - 1}")
        for number, where, row in rows(path)
        if not isinstance(row, Mapping) or all(str(row.get(key)) == value for key, value in (only or {}).items())
    )
    return FiniteTaskSet(name, _distinct(tasks, str(path)), seed)


def hub_tasks(
    name: str, subset: str | None = None, fields: RowFields = NO_FIELDS, kind: str | None = None, seed: int = 0
) -> TaskSet:
    """Load a data set from the hub, by its name (`openai/gsm8k`) and, if it has several, its subset."""
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise TaskError(
            f"'{name}' names a data set on the hub, which needs the package `datasets`",
            "install it with `pip install datasets`, or give the path of a task file",
        ) from None
    try:
        parts: Any = load_dataset(name, subset)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"data set '{name}' cannot be loaded: {error}", "is its name right, and the hub reachable?"
        ) from error
    kind = kind or name.rpartition("/")[2]
    tasks: list[Task] = []
    for part, part_rows in parts.items():
        # A data set with a single part is split by hash, like a file.
        split = fields.split or (_HUB_SPLITS.get(part) if len(parts) > 1 else None)
        if split is None and len(parts) > 1:
            continue
        part_fields = replace(fields, split=split)
        for number, row in enumerate(part_rows):
            tasks.append(
                read_row(dict(row), f"{name}, {part} row {number}", part_fields, kind, f"{kind}-{part}-{number}")
            )
    return FiniteTaskSet(kind, _distinct(tasks, name), seed)


def _distinct(tasks: Iterable[Task], source: str) -> list[Task]:
    seen: dict[str, Task] = {}
    for task in tasks:
        if task.id in seen:
            raise TaskError(
                f"{source}: two tasks have the id '{task.id}'",
                "ids must differ; name another field: `id: FIELD` in the source, or midstream eval --id-field FIELD",
            )
        seen[task.id] = task
    if not seen:
        raise TaskError(
            f"{source}: holds no task", 'each line is an object such as {"question": "...", "answer": "..."}'
        )
    return list(seen.values())
