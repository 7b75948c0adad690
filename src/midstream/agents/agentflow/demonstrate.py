"""Demonstrations of the flow `agentflow`: planner, verifier and generator follow a task's demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.agents.agentflow.actions import NO_TOOL, ActionField, NextStep, Notation, write_action
from midstream.agents.demonstrations import Assignment, Demonstrator, filled, value_of
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox


class AgentFlowDemonstrator(Demonstrator):
    """After the last call of the demonstration the planner's tool is `none`."""

    roles = ("planner", "verifier", "generator")

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
            return write_action(self._action(assignment, found), self._notation)
        if request.role == "verifier":
            return "yes" if len(found) >= len(assignment.calls) else "no"
        if assignment.calls:
            return found[-1] if found else "unknown"
        return str(assignment.answer)

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
