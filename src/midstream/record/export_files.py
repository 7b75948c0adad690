"""The two kinds of file that records travel in. Both begin with the version of what is in them."""

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
Placed = tuple[str, Callable[[], Record]]
"""Where in a file a record stands, and a function that reads it; that raises `ValueError` when it is damaged."""

READS = (2,)
"""Versions of the record that can be read. A record does not change with columns that do not travel."""
HEADER = {"format": "midstream", "schema_version": READS[-1]}
ROWS = 64
"""Rows of a Parquet file held at once."""


class Form(Protocol):
    """A kind of file."""

    def write(self, path: Path) -> AbstractContextManager[Write]:
        """Write a file, some records at a time."""
        ...

    def read(self, path: Path) -> Iterator[Placed]:
        """The records of a file, in order. Raises `RunError` when it is no such file or of another version."""
        ...


def form_of(path: Path) -> Form:
    """The kind of file that the ending of `path` names."""
    forms: dict[str, Form] = {".jsonl": JsonLines(), ".parquet": Parquet()}
    if path.suffix not in forms:
        raise RunError(f"'{path}' ends in neither .jsonl nor .parquet", "the ending says what kind of file it is")
    return forms[path.suffix]


class JsonLines:
    @contextmanager
    def write(self, path: Path) -> Iterator[Write]:
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(HEADER) + "\n")
            yield lambda records: file.writelines(to_json(record, "record") + "\n" for record in records)

    def read(self, path: Path) -> Iterator[Placed]:
        # Only "\n" ends a line: text may hold other characters that Python takes for its end.
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            _check_header(path, file.readline())
            for number, line in enumerate(file, 2):

                def record(line: str = line) -> Record:
                    line.encode()  # what was no UTF-8 is not now either
                    return from_json(line)

                yield f"line {number}", record


class Parquet:
    @contextmanager
    def write(self, path: Path) -> Iterator[Write]:
        pa, parquet = _pyarrow()
        plan = _schema(pa).with_metadata({"midstream": json.dumps(HEADER)})
        with parquet.ParquetWriter(path, plan) as writer:
            yield lambda records: writer.write_batch(pa.RecordBatch.from_pylist(list(map(_packed, records)), plan))

    def read(self, path: Path) -> Iterator[Placed]:
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
_STEP_TEXT = {"metadata", "messages", "tools", "text"}
"""Columns of Parquet that hold JSON."""


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
    steps = [{**step, **{name: from_json(step[name]) for name in _STEP_TEXT}} for step in row["steps"]]
    return {**row, **{name: from_json(row[name]) for name in _TEXT}, "steps": steps}


def _check_header(path: Path, line: str) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, Mapping) or header.get("format") != HEADER["format"]:
        raise RunError(f"'{path}' is no export of a store", "'midstream store export' writes one")
    if header.get("schema_version") not in READS:
        raise RunError(
            f"'{path}' has schema_version {header.get('schema_version')!r}, which is not known here",
            f"this version of Midstream reads {', '.join(map(str, READS))}",
        )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise RunError("Parquet needs pyarrow", "pip install 'midstream[parquet]', or use .jsonl") from None
    return pyarrow, pyarrow.parquet
