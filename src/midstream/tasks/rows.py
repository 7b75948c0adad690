"""Converts rows of a task file or data set to tasks: detects fields, and parses common answer formats.

Supported: GSM8K (`... #### 18`), HotpotQA, Bamboogle and AIME style (`answers` lists, also lists written as text such
as `"['james madison']"`), the data sets of `formats.py`, and plain `{"prompt", "answer"}`; a prompt may be a list of
chat messages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midstream.core.errors import TaskError, nearest
from midstream.core.types import Message, Task
from midstream.tasks.formats import known_format
from midstream.tasks.taskset import HELD_OUT, split_of

QUESTION_FIELDS = ("question", "prompt", "problem", "query")
ANSWER_FIELDS = ("answers", "answer", "solution", "target", "ground_truth")
_SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "dev": "val", "test": "test"}
_GROUPED = re.compile(r"[$-]*\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFields:
    """Names of the fields to read; None finds the usual ones. `split` puts every row into that split;
    without it, and without a field `split`, the two shares decide by hash of the question."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None
    split: str | None = None
    val_share: float = HELD_OUT
    test_share: float = HELD_OUT


def read_row(row: Any, where: str, fields: RowFields, kind: str, fallback_id: str) -> Task:
    """Convert one row to a task. `where` (file and line) starts the message of any `TaskError`."""
    if not isinstance(row, Mapping):
        raise TaskError(
            f"{where}: must be an object with fields, not {_kind(row)}", '{"question": "...", "answer": "..."}'
        )
    if fields.question is None and fields.answer is None:
        row = known_format(row) or row
    question_field = _find(row, fields.question, QUESTION_FIELDS, "question", where)
    answer_field = _find(row, fields.answer, ANSWER_FIELDS, "answer", where)
    id_field = fields.id or "id"
    if fields.id and fields.id not in row:
        raise TaskError(f"{where}: field '{fields.id}' is missing", nearest(fields.id, row))
    prompt = _prompt(row[question_field], f"{where}: field '{question_field}'")
    answer = _answer(row[answer_field], f"{where}: field '{answer_field}'")
    used = {question_field, answer_field, id_field, "split"}
    return Task(
        id=str(row.get(id_field, fallback_id)),
        prompt=prompt,
        answer=answer,
        kind=kind,
        split=_split(row, fields, prompt, where),
        metadata={name: value for name, value in row.items() if name not in used},
    )


def _find(row: Mapping[str, Any], requested: str | None, usual_fields: tuple[str, ...], role: str, where: str) -> str:
    for name in (requested,) if requested else usual_fields:
        if name in row:
            return name
    named = f"`{role}: FIELD` in the source, or midstream eval --{role}-field FIELD"
    hint = f"its fields are: {', '.join(map(str, row)) or 'none'}; name the right one: {named}"
    missing = (
        f"field '{requested}' is missing"
        if requested
        else f"field '{role}' is missing (looked for {', '.join(usual_fields)})"
    )
    raise TaskError(f"{where}: {missing}", hint)


def _prompt(value: Any, where: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise TaskError(f"{where} is empty", "write the question there, or remove the line")
        return value
    if isinstance(value, list) and value and all(_is_message(message) for message in value):
        return tuple(dict(message) for message in value)
    raise TaskError(f"{where} must be text or a list of chat messages, not {_kind(value)}")


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), (str, list))
    )


def _answer(value: Any, where: str) -> str | list[str] | dict[str, Any]:
    """The accepted answers; the hidden tests of code, `{"tests": [...], "entry_point": ...}`, and the numbers of a
    target, `{"numbers": [...], "target": 24}`, as they are."""
    if isinstance(value, Mapping) and (value.get("tests") or value.get("numbers")):
        return {str(name): part for name, part in value.items()}
    accepted = _flat(value, where)
    if not accepted:
        raise TaskError(f"{where} is empty", "a task needs an answer to grade against")
    return accepted[0] if len(accepted) == 1 else accepted


def _flat(value: Any, where: str) -> list[str]:
    match value:
        case bool():
            return ["yes" if value else "no"]
        case int() | float():
            return [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)]
        case str():
            return _from_text(value)
        case list():
            return list(dict.fromkeys(text for item in value for text in _flat(item, where)))
        case _:
            raise TaskError(f"{where} must be text, a number or a list of them, not {_kind(value)}")


def _from_text(text: str) -> list[str]:
    final = text.rpartition("####")[2].strip() if "####" in text else text.strip()
    if _GROUPED.fullmatch(final):
        final = final.replace(",", "")
    listed = _written_list(final)
    if listed is not None:
        return [item.strip() for item in listed if item.strip()]
    return [final] if final else []


def _written_list(text: str) -> list[str] | None:
    """Return the items of a list of strings in Python or JSON syntax, else None: `[1, 2]` may itself be an answer."""
    if not (text.startswith("[") and text.endswith("]") and len(text) <= 10_000):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if value and isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _split(row: Mapping[str, Any], fields: RowFields, prompt: str | tuple[Message, ...], where: str) -> str:
    if fields.split:
        return fields.split
    if "split" not in row:
        key = prompt if isinstance(prompt, str) else repr(prompt)
        return split_of(key, fields.val_share, fields.test_share)
    split = _SPLIT_NAMES.get(str(row["split"]))
    if split is None:
        raise TaskError(f"{where}: field 'split' is {row['split']!r}", nearest(str(row["split"]), _SPLIT_NAMES))
    return split


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
