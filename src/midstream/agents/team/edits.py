"""The coordinator's plan edits: tasks for members as JSON, checked before they become nodes of the plan."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from midstream.agents.team.actions import UnreadableReply, json_objects
from midstream.core.config import Config
from midstream.core.errors import nearest
from midstream.plans.plan import NAME
from midstream.plans.values import HEADS

EXAMPLE = '{"add": [{"id": "a", "member": "NAME", "task": "...", "after": []}]}'
FINISH_FROM = '{"answer_from": "ID"}'
FINISH = f'{{"answer": "..."}} or {FINISH_FROM}'
RESERVED = "manage-"
"""Begins the ids of the manager's own nodes."""


def _task_id(text: str) -> str:
    if not NAME.fullmatch(text) or text in HEADS or text.startswith(RESERVED):
        raise ValueError(f"'{text[:40]}' cannot be an id: use letters, digits, _ and -")
    return text


class TaskEdit(Config):
    """One new task, as the manager writes it."""

    id: Annotated[str, AfterValidator(_task_id)]
    member: str
    task: str = Field(min_length=1)
    after: tuple[str, ...] = ()
    """Tasks whose results the member is shown."""


class Edit(Config):
    """What the manager wrote: new tasks, or the end."""

    add: tuple[TaskEdit, ...] = ()
    answer: str | int | float | None = None
    answer_from: str | None = None
    """The task whose result is the answer."""


@dataclass(slots=True)
class TeamTask:
    """A task of the plan. `state` is that of its node; `round` the manager's turn that added it."""

    id: str
    member: str
    task: str
    after: tuple[str, ...]
    round: int
    state: str = "pending"
    result: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def node(self) -> dict[str, Any]:
        """The node of the plan. A failure is the manager's to deal with, so the plan goes on."""
        given = {name: {"$ref": name} for name in self.after}
        return {
            "id": self.id,
            "handler": "member",
            "role": self.member,
            "args": {"task": self.id, "given": given},
            "on_failure": "continue",
            "retry": {"attempts": 1, "corrections": 0},
        }


def read_edit(
    text: str,
    members: Collection[str],
    tasks: Mapping[str, TeamTask],
    *,
    round_: int,
    room: int,
    own_answer: bool = True,
) -> tuple[Edit, list[TeamTask]]:
    """Return the edit in the manager's reply, and its tasks. Raises `UnreadableReply` that says what to write instead.

    `tasks` are those of the plan, all of which have ended; `room` is how many more it may get. Without `own_answer`
    the manager may write an answer itself only if nothing else is left."""
    succeeded = [name for name, task in tasks.items() if task.state == "succeeded"]
    may_answer = own_answer or (room < 1 and not succeeded)
    finish = FINISH if may_answer else FINISH_FROM
    found = json_objects(text)
    if len(found) != 1:
        raise UnreadableReply(f"write one JSON object: {EXAMPLE} or {finish}")
    try:
        edit = Edit.model_validate(found[0])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnreadableReply(f"{where}: {first['msg'].removeprefix('Value error, ')}; write {EXAMPLE}") from None
    asked = [bool(edit.add), edit.answer is not None, edit.answer_from is not None]
    if sum(asked) != 1:
        raise UnreadableReply(f"write exactly one of add, answer and answer_from: {EXAMPLE} or {finish}")
    if edit.answer_from is not None and edit.answer_from not in succeeded:
        name = edit.answer_from[:40]
        raise UnreadableReply(f"task '{name}' has no result; {nearest(name, succeeded)}")
    if edit.answer is not None and not may_answer:
        raise UnreadableReply(f"the answer is the result of a task: {FINISH_FROM}; or {EXAMPLE}")
    if len(edit.add) > room:
        raise UnreadableReply(f"{len(edit.add)} tasks, and room for {room}; write fewer, or {finish}")
    new: dict[str, TeamTask] = {}
    for one in edit.add:
        if one.id in tasks or one.id in new:
            raise UnreadableReply(f"there is a task '{one.id}' already; give the new one another id")
        if one.member not in members:
            raise UnreadableReply(f"'{one.member[:40]}' is no member; {nearest(one.member[:40], members)}")
        for name in one.after:
            if name not in new and (name not in tasks or tasks[name].state != "succeeded"):
                raise UnreadableReply(f"'{one.id}' comes after '{name[:40]}', which has no result and is not before it")
        made = TeamTask(one.id, one.member, one.task.strip(), tuple(dict.fromkeys(one.after)), round_)
        for known in (*tasks.values(), *new.values()):
            if (known.member, known.task, known.after) == (made.member, made.task, made.after):
                raise UnreadableReply(f"task '{known.id}' asked the same of {known.member}; ask something else, or end")
        new[one.id] = made
    return edit, list(new.values())


def plan_of(tasks: Sequence[TeamTask], round_: int, concurrency: int) -> dict[str, Any]:
    """Return the plan before the manager's turn `round_`: all tasks, its earlier turns, and this one, which waits for
    the tasks to end."""
    nodes = [task.node() for task in tasks]
    for number in range(1, round_ + 1):
        waits = [task.id for task in tasks if task.round == number - 1]
        nodes.append(
            {
                "id": f"{RESERVED}{number}",
                "handler": "manage",
                "args": {"turn": number},
                "after": waits,
                "join": "settled" if waits else "all",
                "retry": {"attempts": 1, "corrections": 0},
            }
        )
    return {"name": "team", "nodes": nodes, "max_concurrency": concurrency, "on_failure": "stop"}


def shown_tasks(tasks: Sequence[TeamTask]) -> str:
    """States and results of tasks, for the manager."""
    shown = [{"id": one.id, "member": one.member, "state": one.state, "result": one.result} for one in tasks]
    return json.dumps(shown, ensure_ascii=False)
