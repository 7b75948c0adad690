"""Reads what models reply to operators: tagged fields, letters of a choice, and code."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from midstream.rewards.programs import fenced_programs
from midstream.workflows.problems import WorkflowError
from midstream.workflows.source import parse_statements

MAX_CODE_CHARS = 50_000
_WORD_TRUE = re.compile(r"\b(true|yes|correct|pass(?:ed)?)\b", re.IGNORECASE)
_WORD_FALSE = re.compile(r"\b(false|no|not|incorrect|wrong|fail(?:ed)?)\b", re.IGNORECASE)
_LABEL = re.compile(r"(?<![A-Za-z0-9])([A-Z]{1,2}|[a-z])(?![A-Za-z0-9'’])")


def tagged(text: str, name: str) -> str | None:
    """The content of the last `<name>...</name>`, stripped; to the end of the text where the closing tag is missing.
    None without the tag. A later empty one does not replace a filled one."""
    closed = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL | re.IGNORECASE)
    filled = [part.strip() for part in closed if part.strip()]
    if filled:
        return filled[-1]
    opened = re.search(rf"<{name}>(.*)\Z", text, re.DOTALL | re.IGNORECASE)
    if opened is None or closed:
        return "" if closed else None
    return re.sub(r"</?\w+>\s*\Z", "", opened[1]).strip()


def label(index: int) -> str:
    """The letter of a candidate: A ... Z, AA, AB, ..."""
    return chr(65 + index) if index < 26 else label(index // 26 - 1) + chr(65 + index % 26)


def chosen_index(text: str, count: int) -> int | None:
    """Which of `count` lettered candidates `text` chooses: `B`, `b.`, `(B)`, `Answer: B`. None when it names none or
    several."""
    labels = {label(index): index for index in range(count)}
    alone = re.sub(r"[^A-Za-z]", "", text).upper()
    if alone in labels:
        return labels[alone]
    found = {labels[one.upper()] for one in _LABEL.findall(text) if one.upper() in labels and one not in ("a", "I")}
    return found.pop() if len(found) == 1 else None


def truth(text: str) -> bool | None:
    """Whether `text` says true or false; None when it says neither or both."""
    yes, no = _WORD_TRUE.search(text) is not None, _WORD_FALSE.search(text) is not None
    return yes if yes != no else None


def code_of(text: str, entry_point: str | None = None) -> str | None:
    """The Python code of a reply: the fenced block that defines `entry_point` (else the last Python block), or the
    whole reply when it is valid Python. None without code."""
    if len(text) > MAX_CODE_CHARS:
        return None
    blocks = fenced_programs(text)
    if blocks:
        defining = [body for body in blocks if entry_point and entry_point in defined_names(body)]
        return (defining or blocks)[-1]
    stripped = text.strip()
    return stripped if stripped and defined_names(stripped) else None


def defined_names(code: str) -> Sequence[str]:
    """Names of functions, classes and variables at the top level of `code`; empty when it is not valid Python."""
    names: list[str] = []
    try:
        for statement in parse_statements(code.replace("\r\n", "\n"), MAX_CODE_CHARS):
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.append(statement.name)
            elif isinstance(statement, ast.Assign):
                names += [target.id for target in statement.targets if isinstance(target, ast.Name)]
    except WorkflowError:
        return ()
    return names
