"""How much structure a request body has, found out before it is parsed: a parser holds up everything else while it
makes an object of each `[]` in a body of megabytes."""

from __future__ import annotations

MOST_ITEMS = 1_000_000
"""Commas: what numbers in lists cost is small."""


def has_more_than(content: bytes, objects: int) -> bool:
    """Whether the JSON `content` has more than `objects` objects, lists and fields, or more than `MOST_ITEMS` items.

    What stands inside strings does not count. Takes time in proportion to the body, most of it with the interpreter
    free for others: meant for a thread."""
    if _fits(content, 0, len(content), objects)[0]:  # strings included
        return False
    left, items, place = objects, MOST_ITEMS, 0
    while place < len(content):
        quote = content.find(b'"', place)
        end = len(content) if quote < 0 else quote
        fits, structure, commas = _fits(content, place, end, left, items)
        if not fits:
            return True
        left, items = left - structure, items - commas
        place = len(content) if quote < 0 else _after_string(content, quote + 1)
    return False


def _fits(content: bytes, start: int, end: int, objects: int, items: int = MOST_ITEMS) -> tuple[bool, int, int]:
    structure = sum(content.count(mark, start, end) for mark in (b"{", b"[", b":"))
    commas = content.count(b",", start, end)
    return structure <= objects and commas <= items, structure, commas


def _after_string(content: bytes, place: int) -> int:
    """Where the string ends that `place` stands in."""
    while (quote := content.find(b'"', place)) >= 0:
        before = content[place:quote]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        place = quote + 1
    return len(content)
