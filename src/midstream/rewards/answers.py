"""Extracts the answer from a text: removes the thinking and finds the part marked as the answer."""

from __future__ import annotations

import re

from midstream.core.text import after_thinking

_OPENING = re.compile(r"<answer>", re.IGNORECASE)
_CLOSING = re.compile(r"</answer>", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LEAD_IN = re.compile(
    r"(?:\b(?:the|my|our)\s+)?(?:\bfinal\s+)?\banswer\b\W{0,4}(?:\s+is\b|\s+should\s+be\b|(?<=[:=])|[:=])\s*:?"
    r"|(?:答案|答え|答|정답)\s*(?:是|为|為|は|은|[:=])\s*:?",
    re.IGNORECASE,
)

DEEPEST_BOX = 4
"""Maximum depth of nested boxes."""


def marked_answer(text: str) -> str | None:
    """Return the part of `text` marked as its answer: `<answer>..</answer>`, `\\boxed{..}` or `#### ..`.

    The last non-empty one wins. Returns "" when all are empty and None when nothing is marked.
    """
    tagged = _last_tagged(text)
    inner = text if tagged is None else tagged
    boxed = _last_boxed(inner)
    if boxed is not None:
        return boxed.strip()
    if tagged is None and "####" in text:
        lines = text.rpartition("####")[2].strip().splitlines()
        return lines[0].strip() if lines else ""
    return None if tagged is None else tagged.strip()


def extract_answer(text: str) -> str:
    """Return the answer after the thinking: its marked part, or the whole text when nothing is marked."""
    text = after_thinking(text)
    marked = marked_answer(text)
    return text.strip() if marked is None else marked


def after_lead_in(text: str) -> str | None:
    """Return what follows the last "the answer is" or "Answer:" of `text`; None without one."""
    found = list(_LEAD_IN.finditer(text))
    return text[found[-1].end() :].strip().removeprefix("** ").strip() if found else None


def _last_tagged(text: str) -> str | None:
    openings = list(_OPENING.finditer(text))
    if not openings:
        return None
    last: str | None = None
    for index, opening in enumerate(openings):
        following = openings[index + 1].start() if index + 1 < len(openings) else len(text)
        closing = _CLOSING.search(text, opening.end(), following)
        if closing is not None:
            slot = text[opening.end() : closing.start()]
            last = slot if slot.strip() or last is None else last
    if last is None:  # sampling stopped at the closing tag, or was cut before it
        return text[openings[-1].end() :]
    return last


def _last_boxed(text: str, depth: int = 0) -> str | None:
    last: str | None = None
    position = 0
    while (box := _BOX.search(text, position)) is not None:
        end = _closing_brace(text, box.end())
        if end is None:
            break
        inner = text[box.end() : end]
        last = inner if inner.strip() or last is None else last
        position = end
    if last is not None and depth < DEEPEST_BOX:
        inner = _last_boxed(last, depth + 1)
        return last if inner is None else inner
    return last


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None
