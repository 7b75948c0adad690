"""Uids are names, never paths, so file names and URLs built from one stay inside their folder."""

from __future__ import annotations

LONGEST = 200


def check_name(name: str) -> str:
    """Return `name`; raise `ValueError` if it could be read as a path or is not one line of text."""
    if not 0 < len(name) <= LONGEST:
        raise ValueError(f"a name has 1 to {LONGEST} characters, not {len(name)}")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError("a name is not a path: it has no '/' or '\\', and is not '.' or '..'")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError("a name has no control characters")
    return name
