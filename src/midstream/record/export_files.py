"""File formats of exported records. Both start with the version of the record format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from midstream.core.errors import RunError
from midstream.store.exact_json import from_json, to_json

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]
Write = Callable[[list[Record]], None]
LazyRecord = tuple[str, Callable[[], Record]]
"""Location of a record in a file, and a function that reads it; raises `ValueError` if the record is damaged."""

READS = (2, 3)
"""Readable versions of the record format. It does not change with columns that are not exported. Steps of version 2
have no `constraint`."""
HEADER = {"format": "midstream", "schema_version": READS[-1]}
ROWS = 64
"""Rows of a Parquet file in memory at once."""


class FileFormat(Protocol):
    """An export file format."""

    def write(self, path: Path) -> AbstractContextManager[Write]:
        """Write a file, a few records at a time."""
        ...

    def read(self, path: Path) -> Iterator[LazyRecord]:
        """Yield the records of a file, in order. Raises `RunError` for another format or version."""
        ...


def file_format(path: Path) -> FileFormat:
    """Return the file format for the suffix of `path`."""
    formats: dict[str, FileFormat] = {".jsonl": JsonLines(), ".parquet": Parquet()}
    if path.suffix not in formats:
        raise RunError(f"'{path}' ends in neither .jsonl nor .parquet", "the suffix selects the file format")
    return formats[path.suffix]


class JsonLines:
    @contextmanager
    def write(self, path: Path) -> Iterator[Write]:
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(HEADER) + "\n")
            yield lambda records: file.writelines(to_json(record, "record") + "\n" for record in records)

    def read(self, path: Path) -> Iterator[LazyRecord]:
        # Only "\n" ends a line: text may contain other characters that Python treats as line breaks.
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            _check_header(path, file.readline())
            for number, line in enumerate(file, 2):

                def record(line: str = line) -> Record:
                    line.encode()  # raises for bytes that were not UTF-8
                    return from_json(line)

                yield f"line {number}", record


class Parquet:
    @contextmanager
    def write(self, path: Path) -> Iterator[Write]:
        pa, parquet = _pyarrow()
        columns = _schema(pa).with_metadata({"midstream": json.dumps(HEADER)})
        with parquet.ParquetWriter(path, columns) as writer:
            yield lambda records: writer.write_batch(pa.RecordBatch.from_pylist(list(map(_packed, records)), columns))

    def read(self, path: Path) -> Iterator[LazyRecord]:
        pa, parquet = _pyarrow()
        try:
            file = parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise RunError(f"'{path}' is not a Parquet file: {error}", "export it again") from None
        with file:
            _check_header(path, (file.schema_arrow.metadata or {}).get(b"midstream", b"").decode())
            number = 0
            batches = file.iter_batches(batch_size=ROWS)
            while True:
                try:
                    batch = next(batches, None)
                except (OSError, pa.ArrowException) as error:
                    raise RunError(f"'{path}' is damaged after row {number}: {error}", "export it again") from None
                if batch is None:
                    return
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", lambda row=row: _unpacked(row)


_TEXT = {"task", "tool_calls", "answer", "error", "rewards", "metadata", "curation", "feedback", "group"}
_STEP_TEXT = {"metadata", "messages", "tools", "text", "constraint"}
"""Parquet columns that hold JSON."""


def _schema(pa: Any) -> pa.Schema:
    text, count, number, ids = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int32())
    step = pa.struct({
        "trajectory_uid": text,
        "prompt_uid": text,
        "step_index": count,
        "prompt_ids": ids,
        "response_ids": ids,
        "rollout_log_probs": pa.list_(number),
        "reward": number,
        "policy_version": count,
        "adapter": text,
        "is_last": pa.bool_(),
        "role": text,
        "trainable": pa.bool_(),
        "parent": count,
        "branch_reason": text,
        "temperature": number,
        "finish_reason": text,
        "latency_s": number,
        **dict.fromkeys(sorted(_STEP_TEXT), text),
    })  # fmt: skip
    return pa.schema({
        "uid": text,
        "prompt_uid": text,
        "channel": text,
        "train_step": count,
        "status": text,
        "created_at": number,
        "ended_at": number,
        "turns": count,
        "reward": number,
        "steps": pa.list_(step),
        **dict.fromkeys(sorted(_TEXT), text),
    })  # fmt: skip


def _packed(record: Record) -> Record:
    steps = [{**step, **{name: to_json(step[name], name) for name in _STEP_TEXT}} for step in record["steps"]]
    return {**record, **{name: to_json(record[name], name) for name in _TEXT}, "steps": steps}


def _unpacked(row: Record) -> Record:
    steps = [{**step, **{name: from_json(step[name]) for name in _STEP_TEXT & {*step}}} for step in row["steps"]]
    return {**row, **{name: from_json(row[name]) for name in _TEXT}, "steps": steps}


def _check_header(path: Path, line: str) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, Mapping) or header.get("format") != HEADER["format"]:
        raise RunError(f"'{path}' is not a Midstream export", "'midstream store export' writes one")
    if header.get("schema_version") not in READS:
        raise RunError(
            f"'{path}' has unsupported schema_version {header.get('schema_version')!r}",
            f"this version of Midstream reads {', '.join(map(str, READS))}",
        )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise RunError("Parquet needs pyarrow", "pip install 'midstream[parquet]', or use .jsonl") from None
    return pyarrow, pyarrow.parquet
