"""Counts the structure of a JSON body before it is parsed. A parser makes an object of each `[]` and blocks everything
else meanwhile, so a body of megabytes can be refused by its count alone."""

from __future__ import annotations

MOST_ITEMS = 1_000_000
"""Limit on commas. Numbers in lists are cheap, so it is far above the limit on objects."""


def exceeds(content: bytes, objects: int) -> bool:
    """Return whether the JSON `content` has more than `objects` objects, lists and fields, or `MOST_ITEMS` commas.

    Text inside strings does not count. Takes linear time, mostly without the interpreter's lock; call it in a thread.
    """
    if _fits(content, 0, len(content), objects)[0]:  # even with the text inside strings
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
    """Return the end of the string that contains `place`."""
    while (quote := content.find(b'"', place)) >= 0:
        before = content[place:quote]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        place = quote + 1
    return len(content)
