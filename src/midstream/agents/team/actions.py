"""Reads what a member of a team wrote: the JSON objects in a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from midstream.core.errors import MidstreamError

MOST_OBJECTS = 32
MOST_TRIES = 64
"""Places in a reply at which an object may seem to begin. Each costs time when it does not."""
_DECODER = json.JSONDecoder()


class UnreadableReply(MidstreamError):
    """A member's reply is none of the actions it has. The message says what to write instead."""


def json_objects(text: str) -> list[Mapping[str, Any]]:
    """Return the JSON objects in `text`, in order, those inside a list too. Other text around them is ignored."""
    found: list[Mapping[str, Any]] = []
    place = 0
    for _ in range(MOST_TRIES):
        starts = [at for at in (text.find("{", place), text.find("[", place)) if at >= 0]
        if not starts or len(found) >= MOST_OBJECTS:
            break
        try:
            value, place = _DECODER.raw_decode(text, min(starts))
        except (ValueError, RecursionError):
            place = min(starts) + 1
            continue
        items = value if isinstance(value, list) else [value]
        found += [item for item in items if isinstance(item, Mapping)]
    return found[:MOST_OBJECTS]


def single_action(text: str, kinds: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    """Return the one action in a reply and its kind: the key of `kinds` that it has.

    `kinds` are the exclusive actions with an example of each. A reply with one of them beside any other action is
    refused as a whole, so that nothing of it is lost. Returns `("", {})` for a reply without an action; raises
    `UnreadableReply`."""
    found = json_objects(text)
    actions = [(kind, one) for one in found for kind in kinds if kind in one]
    if not actions:
        return "", {}
    if len(found) > 1 or len(actions) > 1:
        written = ", ".join(dict.fromkeys(key for one in found for key in one))
        raise UnreadableReply(
            f"'{actions[0][0]}' must be the only action of a reply, and this one has {len(found)} ({written[:120]}); "
            f"nothing was done. Write only {kinds[actions[0][0]]}"
        )
    return actions[0]


def text_of(action: Mapping[str, Any], key: str, example: str) -> str:
    """Return the text under `key`. Raises `UnreadableReply` for anything else than text and numbers."""
    value = action.get(key)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UnreadableReply(f"'{key}' must be text; write {example}")
