"""Demonstrations of the flow `react`: a task's tool calls as typed actions, then the answer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from midstream.agents.demonstrations import OTHERWISE, Assignment, Demonstrator, filled, value_of
from midstream.agents.react.actions import ActionName
from midstream.core.errors import ConfigError
from midstream.core.types import Task
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox
from midstream.tools.marking import read_marked

SUMMARISE = "[summary]"
"""Start of the request for a summary of old messages."""
LESSON = "lesson"
"""Source of the lessons in the first message."""


class ReactDemonstrator(Demonstrator):
    """`actions` are those that the flow allows; `typed_answer` keeps an answer that is not text as JSON."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        toolbox: Toolbox,
        actions: Collection[ActionName],
        search_tool: str,
        *,
        typed_answer: bool = False,
        wrong: float,
        seed: int,
    ) -> None:
        super().__init__(tokenizer, toolbox, wrong=wrong, seed=seed)
        self._actions, self._search_tool, self._typed_answer = actions, search_tool, typed_answer

    def check(self, task: Task) -> None:
        super().check(task)
        for call in Assignment(task).calls:
            if (action := self._call(call["tool"], call["arguments"])["action"]) not in self._actions:
                raise ConfigError(
                    f"the demonstration of the task '{task.id}' calls '{call['tool']}', which no action of "
                    "flow.settings.actions can do",
                    f"add '{action}' there, or {OTHERWISE}",
                )

    def reply(self, assignment: Assignment, request: Request) -> str:
        shown, found = str(request.messages[-1]["content"]), assignment.found
        if shown.startswith(SUMMARISE):
            return f"Found so far: {'; '.join(found) or 'nothing'}."
        result = read_marked(shown)
        if result is not None and result[0] != LESSON and not result[1].startswith("Error"):
            found.append(value_of(result[1]))
        first = not any(message["role"] == "assistant" for message in request.messages)
        if assignment.wrong_tool is not None and first:
            right = assignment.calls[0]["arguments"] if assignment.calls else {}
            return _written(self._call(*self.wrong_call(assignment, filled(right, []))))
        if assignment.wrong_tool is None and len(found) < len(assignment.calls):
            call = assignment.calls[len(found)]
            return _written(self._call(call["tool"], filled(call["arguments"], found)))
        answer = assignment.answer if assignment.answer is not None else found[-1] if found else "unknown"
        return _written({"action": "answer", "answer": answer if self._typed_answer else str(answer)})

    def _call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A call as the action made for it, else as `call_api`."""
        named = {self._search_tool: "search", "memory_retrieve": "memory_retrieve"}.get(tool)
        if named in self._actions and set(arguments) <= {"query", "key"}:
            return {"action": named, **arguments}
        return {"action": "call_api", "tool": tool, "args": dict(arguments)}


def _written(action: Mapping[str, Any]) -> str:
    return json.dumps(action, ensure_ascii=False)
