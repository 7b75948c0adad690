"""What a role of a team may write next, as a constraint of its reply (`flow.settings.constrained`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midstream.core.types import Constraint
from midstream.engines.formats.grammar import any_of, json_rule, json_schema

_TEXT = r"/[^{\[\s][^{]*/"
"""Text without an opening brace: an action could begin there."""


@dataclass(frozen=True, slots=True)
class Replies:
    """Valid replies: JSON objects that match one of `schemas`, and, with `text`, plain text."""

    schemas: tuple[Mapping[str, Any], ...] = ()
    text: bool = False

    def constraint(self, calls: Mapping[str, Any] | None = None) -> Constraint | None:
        """Return the constraint of a reply that may also be a tool call, which matches the schema `calls`. None where
        every text is valid, and where nothing is."""
        schemas = [*self.schemas, *([] if calls is None else [calls])]
        if not schemas:
            return None
        if len(schemas) == 1 and not self.text:
            return Constraint(kind="json_schema", grammar=json_schema(schemas[0]))
        rules = [f"r{place}: {json_rule(schema)}" for place, schema in enumerate(schemas)]
        names = [f"r{place}" for place in range(len(schemas))]
        if self.text:
            rules, names = [*rules, f"TEXT: {_TEXT}"], [*names, "TEXT"]
        return Constraint(kind="lark", grammar="\n".join([f"start: {any_of(names)}", *rules]))


def object_of(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an object with these properties, in this order, and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1}
"""Schema of a text."""


def one_of(names: Collection[str]) -> dict[str, Any]:
    """Return the schema of one of `names`."""
    return {"enum": list(names)}


def edit_schema(
    members: Collection[str], known: Collection[str], succeeded: Sequence[str], room: int, *, own_answer: bool = True
) -> Mapping[str, Any]:
    """Return the schema of a coordinator's edit: up to `room` new tasks, or an end.

    New tasks are numbered (`t1`, `t2`, ...) beyond those `known`, and come after tasks that have `succeeded` or were
    listed before them in the edit. The manager writes an answer itself only with `own_answer`, or if nothing else is
    left."""
    ends = [object_of({"answer_from": one_of(succeeded)})] if succeeded else []
    if own_answer or (room < 1 and not succeeded):
        ends.append(object_of({"answer": TEXT}))
    if room < 1:
        return {"anyOf": ends}
    numbers = (f"t{number}" for number in range(1, len(known) + room + 1))
    new = [name for name in numbers if name not in known][:room]
    tasks: list[Mapping[str, Any]] = []
    for place, name in enumerate(new):
        earlier = [*succeeded, *new[:place]]
        after = {"after": {"type": "array", "items": one_of(earlier), "maxItems": len(earlier)}} if earlier else {}
        tasks.append(object_of({"id": {"const": name}, "member": one_of(members), "task": TEXT}, after))
    add = {"type": "array", "prefixItems": tasks, "items": False, "minItems": 1, "maxItems": room}
    return {"anyOf": [object_of({"add": add}), *ends]}
