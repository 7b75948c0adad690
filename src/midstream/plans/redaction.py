"""Removes what must not be stored from texts that handlers give to the journal.

What is removed is removed for the run as well: a node, a step or a compensation that uses a text gets what is stored,
now and after a restart. So recovery does not depend on it. The plan, its input, lists and inputs derived from them,
schemas and defaults of questions, and people's answers are stored as they are: handlers need them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from midstream.store.exact_json import from_json, to_json

Redact = Callable[[str], str]
"""Returns a text without what must not be stored. It is called in the event loop of the run; an exception stops the
run before anything is written."""


def redacted(value: Any, redact: Redact) -> Any:
    """`value` with every text in it redacted; keys of mappings stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(one, redact) for key, one in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        items = [redacted(one, redact) for one in cast("list[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def redacted_json(text: str, redact: Redact) -> str:
    """`redacted` for a value that is JSON text."""
    return to_json(redacted(from_json(text), redact), "redacted value")


def redacted_fields(values: Mapping[str, Any], redact: Redact) -> dict[str, Any]:
    """Fields of a node's row with their messages redacted: errors, feedback and reasons."""
    changed = dict(values)
    for name in ("error", "undo_error"):
        if changed.get(name) is not None:
            changed[name] = {**changed[name], "message": redact(changed[name]["message"])}
    for name in ("feedback", "reason"):
        if name in changed:
            changed[name] = redacted(changed[name], redact)
    return changed
