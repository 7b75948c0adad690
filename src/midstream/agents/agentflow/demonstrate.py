"""Demonstrations of the flow `agentflow`: planner, executor, verifier and generator follow a task's demonstration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from midstream.agents.agentflow.actions import NO_TOOL, ActionField, NextStep, Notation, write_action
from midstream.agents.demonstrations import Assignment, Demonstrator, filled, value_of
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox


class AgentFlowDemonstrator(Demonstrator):
    """After the last call of the demonstration the planner's tool is `none`."""

    roles = ("planner", "executor", "verifier", "generator")

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        toolbox: Toolbox,
        notation: Notation,
        fields: Sequence[ActionField] = (),
        *,
        wrong: float,
        seed: int,
    ) -> None:
        super().__init__(tokenizer, toolbox, wrong=wrong, seed=seed)
        self._fields = tuple(fields)
        self._notation: Notation = notation

    def reply(self, assignment: Assignment, request: Request) -> str:
        # Each message ends with the line that names the role; before it is the question, then a tool's result.
        observations = [
            message["content"].rpartition("\n")[0] for message in request.messages if message["role"] == "user"
        ]
        found = [value_of(result) for result in observations[1:] if result and not result.startswith("Error")]
        if request.role == "planner":
            action = self._action(assignment, found)
            return (
                write_action(action, self._notation) if request.constraint is None else _only_allowed(action, request)
            )
        if request.role == "executor":
            return json.dumps(self._action(assignment, found).arguments, ensure_ascii=False)
        if request.role == "verifier":
            return "yes" if len(found) >= len(assignment.calls) else "no"
        answer = str(assignment.answer)
        if not assignment.calls:
            return answer
        # A result may say more than what was asked for.
        return "unknown" if not found else answer if answer and answer in found[-1] else found[-1]

    def _action(self, assignment: Assignment, found: Sequence[str]) -> NextStep:
        calls = assignment.calls
        call: Mapping[str, Any] = calls[len(found)] if len(found) < len(calls) else {"tool": NO_TOOL, "arguments": {}}
        tool, arguments = call["tool"], filled(call["arguments"], found)
        if assignment.wrong_tool is not None:
            tool, arguments = self.wrong_call(assignment, arguments)
        done = tool == NO_TOOL
        fields = {
            "justification": "all that was asked for is known" if done else f"{tool} can tell what is missing",
            "context": f"known so far: {', '.join(found) or 'nothing'}",
            "sub_goal": "answer" if done else f"find {', '.join(map(str, arguments.values()))}",
        }
        return NextStep(tool=tool, arguments=arguments, **{name: fields[name] for name in self._fields})


def _only_allowed(action: NextStep, request: Request) -> str:
    """`action` with the keys that the constraint of `request` allows for its tool."""
    assert request.constraint is not None
    for option in json.loads(request.constraint.grammar)["anyOf"]:
        if option["properties"]["tool"]["const"] == action.tool:
            return json.dumps({name: getattr(action, name) for name in option["required"]}, ensure_ascii=False)
    return write_action(action, "json")
