"""`Opening`: what a caller gives when it opens a trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.core.types import Message, Task
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions.active import ActiveTrajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Values for a new trajectory; None takes the gateway's default. `task` may hold `id`, `prompt`, `answer` and
    `kind`; further fields and `metadata` go into its metadata. `key` is the name of the caller's key."""

    uid: str | None = None
    prompt_uid: str | None = None
    channel: str | None = None
    group_size: int | None = None
    task: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    key: str | None = None


def task_of(prompt_uid: str, opening: Opening) -> Task:
    """Return the task of a trajectory opened with `opening`."""
    given = dict(opening.task)
    prompt = given.pop("prompt", "")
    messages: str | tuple[Message, ...] = prompt if isinstance(prompt, str) else tuple(prompt)
    kind, answer, task_id = given.pop("kind", "default"), given.pop("answer", None), given.pop("id", prompt_uid)
    return Task(id=str(task_id), prompt=messages, answer=answer, kind=str(kind), metadata={**opening.metadata, **given})


def fields_of(task: Task) -> dict[str, Any]:
    """Return the `task` of an `Opening` that gives this task."""
    own = {"id": task.id, "prompt": task.prompt, "answer": task.answer, "kind": task.kind}
    return {**task.metadata, **own}


def check_same(active: ActiveTrajectory, opening: Opening, *, strict: bool) -> None:
    """Raise `ApiError` 409 if the open trajectory is in another group than `opening` says; with `strict`, if anything
    that `opening` gives differs."""
    given: dict[str, Any] = {"prompt_uid": opening.prompt_uid}
    known: dict[str, Any] = {"prompt_uid": active.prompt_uid}
    if strict:
        given |= {"channel": opening.channel, "group_size": opening.group_size, **opening.task}
        known |= {**fields_of(active.task), "channel": active.channel, "group_size": active.group_size}
    for name, value in given.items():
        own = known.get(name)
        if value is not None and value != (list(own) if isinstance(own, tuple) else own):
            raise ApiError(409, f"trajectory '{active.uid}' is already open with another {name}: {own}", param=name)
