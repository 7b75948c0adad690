"""Cleans text from outside: repairs surrogate pairs on input, escapes control sequences for display, removes thinking
from replies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 and C1 controls except tab and line feed, bidirectional marks, and characters a terminal cannot encode.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_THINKING = re.compile(r"<(/?)(?:think|thinking|thought)>|\[(/?)THINK\]", re.IGNORECASE)


def cleaned(text: str) -> str:
    """Return `text` as valid Unicode: a surrogate pair becomes its character, a lone surrogate U+FFFD. Programs that
    truncate text at arbitrary offsets produce lone surrogates, which no encoding accepts."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cleaned_json(value: Any) -> Any:
    """Return `value` (JSON data) with every string and key `cleaned`."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, Mapping):
        return {cleaned_json(key): cleaned_json(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [cleaned_json(item) for item in cast("list[Any]", value)]
    return value


def visible(text: str) -> str:
    """Return `text` for a terminal, with control characters as escapes (`\\x1b`), so that output of a model or tool
    cannot move the cursor or alter displayed text. Keeps tabs and line breaks; idempotent."""
    return _CONTROL.sub(_escape, text.replace("\r\n", "\n"))


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return {13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def after_thinking(text: str) -> str:
    """Remove `<think>...</think>` and `[THINK]...[/THINK]` from `text`.

    An unclosed thought extends to the end of the text; an unopened one (opened by the template) starts at its
    beginning.
    """
    pieces: list[str] = []
    thinking, start = False, 0
    for mark in _THINKING.finditer(text):
        if not (mark[1] or mark[2]):
            if not thinking:
                pieces.append(text[start : mark.start()])
            thinking = True
            continue
        if not thinking:
            pieces.clear()
        thinking, start = False, mark.end()
    return "".join(pieces) if thinking else "".join(pieces) + text[start:]
