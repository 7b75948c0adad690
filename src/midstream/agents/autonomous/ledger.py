"""The task list and the progress ledger of an autonomous agent, and how a stall is detected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.core.types import ToolCall


@dataclass(slots=True)
class OwnTask:
    """One task of the agent's list."""

    text: str
    done: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One turn in the ledger."""

    turn: int
    action: str
    """`tool`, `tasks`, `finish`, `give_up`, or `unparsed`."""
    what: str
    progress: bool
    reason: str


@dataclass(slots=True)
class Ledger:
    """What was done towards the goal.

    A turn makes progress when a tool returned something that no call returned before, or a task of the list was done.
    New tasks, repeated calls and failures are none, so two actions in turn, or a list that only grows, stall."""

    tasks: list[OwnTask] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    stalled_turns: int = 0
    """Turns in a row without progress."""
    _seen: set[str] = field(default_factory=set)

    @property
    def open_tasks(self) -> list[str]:
        return [task.text for task in self.tasks if not task.done]

    def add(self, text: str) -> None:
        """Add a task, unless the list has it."""
        if text.strip() and all(task.text != text.strip() for task in self.tasks):
            self.tasks.append(OwnTask(text.strip()))

    def finish(self, number: int) -> bool:
        """Mark task `number` (from 1) as done; returns whether that changed something."""
        if not 1 <= number <= len(self.tasks) or self.tasks[number - 1].done:
            return False
        self.tasks[number - 1].done = True
        return True

    def is_new(self, call: ToolCall) -> bool:
        """Whether a call succeeded with a result that no call returned before."""
        mark = json.dumps([call.tool, call.result])
        new = call.ok and mark not in self._seen
        self._seen.add(mark)
        return new

    def record(self, turn: int, action: str, what: str, reason: str) -> None:
        """Add an entry; a `reason` says what the progress was, and is empty for a turn without any."""
        self.entries.append(Entry(turn, action, what, bool(reason), reason or "no progress"))
        self.stalled_turns = 0 if reason else self.stalled_turns + 1

    def restart(self) -> None:
        """Drop the open tasks, for a new approach."""
        self.tasks = [task for task in self.tasks if task.done]
        self.stalled_turns = 0

    def shown(self) -> str:
        """The task list, for a prompt."""
        if not self.tasks:
            return "tasks: none yet"
        marks = [f"{number}. [{'x' if task.done else ' '}] {task.text}" for number, task in enumerate(self.tasks, 1)]
        return "tasks:\n" + "\n".join(marks)

    def as_json(self) -> Mapping[str, Any]:
        """For the trajectory's metadata."""
        return {
            "tasks": [{"task": task.text, "done": task.done} for task in self.tasks],
            "ledger": [
                {"turn": one.turn, "action": one.action, "what": one.what, "progress": one.reason}
                for one in self.entries
            ],
        }
