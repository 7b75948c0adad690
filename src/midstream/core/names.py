"""Uids are names, never paths: whatever builds a file name or a URL of one stays where it is."""

from __future__ import annotations

LONGEST = 200


def check_name(name: str) -> str:
    """`name`; `ValueError` when it could be read as a path, or is no text of one line."""
    if not 0 < len(name) <= LONGEST:
        raise ValueError(f"a name has 1 to {LONGEST} characters, not {len(name)}")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError("a name is not a path: it has no '/' or '\\', and is not '.' or '..'")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError("a name has no control characters")
    return name
