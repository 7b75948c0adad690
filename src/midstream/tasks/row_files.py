"""Rows of task files: JSON lines (also gzipped), CSV with a header, Parquet. The suffix selects, in any case."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from midstream.core.errors import TaskError
from midstream.core.text import cleaned_json

ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_ENDING = re.compile(r"\.(jsonl?(\.gz)?|csv|parquet)$", re.IGNORECASE)

Row = tuple[int, str, Any]
"""Number of the line or row from 1, its location for messages, and its content."""


def is_task_file(name: str) -> bool:
    """Whether `name` has a task file's suffix."""
    return _ENDING.search(name) is not None


def stem(path: Path) -> str:
    """Return the name of a task file without its suffix."""
    return _ENDING.sub("", path.name) or path.name


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a task file. Raises `TaskError` that names the file, and the line if one cannot be read."""
    found = _ENDING.search(path.name)
    if found is None and path.is_file():
        raise TaskError(f"the task file '{path}' ends in none of {', '.join(ENDINGS)}", "rename it to match its format")
    try:
        if path.is_dir():
            raise TaskError(f"cannot read task file '{path}': it is a folder", "name a file in it")
        content = path.read_bytes()
    except FileNotFoundError:
        raise TaskError(
            f"no task file at '{path}'", f"give the path of a file that ends in {', '.join(ENDINGS)}"
        ) from None
    except OSError as error:
        raise TaskError(f"cannot read task file '{path}': {error.strerror}") from None
    ending = found.group().lower() if found else ""
    if ending == ".parquet":
        return _parquet(path)
    if ending.endswith(".gz"):
        content = _unzipped(path, content)
    content = content.removeprefix(b"\xef\xbb\xbf")
    return _csv(path, content) if ending == ".csv" else _json_lines(path, content)


def _json_lines(path: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = cleaned_json(json.loads(line.decode("utf-8")))
        except UnicodeDecodeError:
            raise TaskError(f"{where}: is not UTF-8 text", "save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise TaskError(
                f"{where}: is not valid JSON: {error.msg} at column {error.colno}", "one object a line"
            ) from None
        except RecursionError:
            raise TaskError(f"{where}: is nested too deeply") from None
        except ValueError as error:  # an integer of thousands of digits
            raise TaskError(f"{where}: cannot be read: {error}") from None
        yield number, where, row


def _csv(path: Path, content: bytes) -> Iterator[Row]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TaskError(f"{path}, line {line}: is not UTF-8 text", "save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TaskError(
                f"{path}, line {reader.line_num}: is not valid CSV: {error}", "quote fields with commas"
            ) from None
        where = f"{path}, line {reader.line_num}"
        if not any(values):
            continue
        if header is None:
            header = [name.strip() for name in values]
            continue
        if len(values) != len(header):
            raise TaskError(
                f"{where}: has {len(values)} fields, but the header has {len(header)}", "quote fields that hold commas"
            )
        number += 1
        # An empty field counts as absent.
        yield number, where, {name: value for name, value in zip(header, values, strict=True) if value}


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise TaskError("Parquet needs pyarrow", "pip install 'midstream[parquet]', or use .jsonl") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, f"{path}, row {number}", {name: value for name, value in row.items() if value is not None}
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"'{path}' is not a Parquet file that can be read: {' '.join(str(error).split())}") from None


def _unzipped(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, ValueError) as error:
        raise TaskError(f"'{path}' is not a gzip file that can be read: {error}", "fetch or pack it again") from None
