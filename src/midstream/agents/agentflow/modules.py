"""Planner, executor, verifier and generator. Each reads and writes the trajectory's memory, and calls a model or, for a
role without an engine, follows a rule."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from midstream.agents.agentflow.actions import (
    NO_TOOL,
    ActionField,
    NextStep,
    Notation,
    UnreadableAction,
    action_schema,
    read_action,
)
from midstream.agents.base import AgentFlowBase
from midstream.core.types import Constraint, Step, ToolCall
from midstream.memory.working import Exchange, TurnRecord, WorkingMemory
from midstream.tools.marking import escape_headers

StopRule = Literal["planner", "evidence"]
ROLES = ("analysis", "planner", "executor", "verifier", "generator")
"""The roles. Each request ends with a header of one of them, such as `[planner 1/3]`."""
_OPERATION = re.compile(r"(?<![\w.])\d|\b(half|twice|double|triple|third|quarter|sum|difference|product)\b")
"""Signs that a question asks for a calculation: a number in it, or one of these words."""


@dataclass(slots=True)
class Conversation:
    """State shared by a trajectory's modules: flow, memory, pending observation."""

    flow: AgentFlowBase
    memory: WorkingMemory
    observation: str
    """Sent with the next request: first the question, then the last tool result. None of its lines is sent as a
    header."""
    constrained: bool = False
    """Sample replies that are read by a program under the schema of what can be read."""

    def has(self, role: str) -> bool:
        return role in self.flow.session.role_engines

    async def ask(self, role: str, request: str, constraint: Constraint | None = None) -> Step:
        """Send the pending observation and `request` to `role`, and remember the exchange. The `constraint` of the
        reply holds if the conversation is `constrained`."""
        asked = f"{escape_headers(self.observation, ROLES)}\n{request}" if self.observation else request
        limit = constraint if self.constrained else None
        step = await self.flow.chat(self.memory.messages(asked), role=role, response_format=limit)
        self.memory.remember(Exchange(role, asked, step.text))
        self.observation = ""
        return step


@dataclass(frozen=True, slots=True)
class Decision:
    """The planner's action, or the reason why its reply could not be parsed, and the step of the reply."""

    action: NextStep | None
    problem: str
    step: Step


@dataclass(frozen=True, slots=True)
class Planner:
    """Analyses the query once, then chooses one action a turn."""

    notation: Notation
    required: tuple[ActionField, ...]

    async def analyse(self, conversation: Conversation) -> None:
        """Turn 0, if the role `analysis` has an engine: keep an analysis of the query in memory."""
        if conversation.has("analysis"):
            conversation.memory.analysis = (await conversation.ask("analysis", "[analysis]")).text

    async def next_step(self, conversation: Conversation, turn: int, turns: int) -> Decision:
        left = conversation.flow.session.tools.remaining
        budget = "" if left is None else f", calls left: {left}"
        request = f"[planner {turn}/{turns}{budget}]"
        step = await conversation.ask("planner", request, self._constraint(conversation))
        recorder = conversation.flow.session.recorder
        try:
            action = read_action(step.text, self.notation, conversation.flow.session.tools, self.required)
        except UnreadableAction as error:
            recorder.annotate(step.step_index, parse_error=str(error), turn=turn)
            return Decision(None, str(error), step)
        recorder.annotate(step.step_index, parsed=True, turn=turn, action=action.model_dump())
        return Decision(action, "", step)

    def _constraint(self, conversation: Conversation) -> Constraint:
        flow = conversation.flow
        tools = flow.session.tools.shown(flow.task.question)
        schema = action_schema(tools, self.required, arguments=not conversation.has("executor"))
        return Constraint(kind="json_schema", grammar=json.dumps(schema))


@dataclass(frozen=True, slots=True)
class Executor:
    """Calls the action's tool, within its time limit and budget. With an engine it writes the arguments itself."""

    async def execute(self, conversation: Conversation, decision: Decision) -> ToolCall:
        session = conversation.flow.session
        if decision.action is None:
            call = ToolCall.unparsed(decision.problem, decision.step.step_index)
            session.tool_calls.append(call)
            return call
        if decision.action.tool == NO_TOOL:
            return ToolCall(tool=NO_TOOL, arguments={}, ok=True, result="", step_index=decision.step.step_index)
        arguments, step = decision.action.arguments, decision.step
        if conversation.has("executor"):
            tool = session.tools.get(decision.action.tool)
            schema = None if tool is None else json.dumps(tool.parameters)
            limit = None if schema is None else Constraint(kind="json_schema", grammar=schema)
            step = await conversation.ask("executor", f"[executor {decision.action.tool}]", limit)
            arguments = self._written(conversation, decision.action.tool, step.text)
        return await conversation.flow.call_tool(decision.action.tool, arguments, step_index=step.step_index)

    def _written(self, conversation: Conversation, tool: str, text: str) -> dict[str, object]:
        try:
            return read_action(f"{tool}: {text}", "compact", conversation.flow.session.tools).arguments
        except UnreadableAction:
            return {"input": text}


@dataclass(frozen=True, slots=True)
class Verifier:
    """Judges whether memory contains enough for the answer (True stops), with a reason. Its rule is `stop_rule`."""

    rule: StopRule

    async def verify(self, conversation: Conversation, action: NextStep | None, call: ToolCall) -> tuple[bool, str]:
        if conversation.has("verifier"):
            step = await conversation.ask("verifier", "[verifier] yes or no", Constraint.one_of("yes", "no"))
            word = step.text.strip().lower()
            verdict = word.startswith("yes")
            conversation.flow.session.recorder.annotate(
                step.step_index, verdict=verdict, parsed=word.startswith(("yes", "no"))
            )
            return verdict, step.text.strip()
        if action is None:
            return False, "no action could be read"
        if action.tool == NO_TOOL:
            return True, "the planner needs no other tool"
        if not call.ok:
            return False, f"the call failed: {call.error_kind}"
        if self.rule == "planner":
            return False, "the planner has not said that it is done"
        if call.tool != "calculator" and _OPERATION.search(conversation.memory.query.lower()):
            return False, "the question asks for a calculation"
        return True, "what was asked for is there"


@dataclass(frozen=True, slots=True)
class Generator:
    """Writes the final answer from memory. Its rule is the last result found."""

    async def answer(self, conversation: Conversation) -> str:
        if conversation.has("generator"):
            return (await conversation.ask("generator", "[generator]")).text.strip()
        found = conversation.memory.found()
        return found[-1] if found else ""


def turn_record(number: int, action: NextStep | None, call: ToolCall, verdict: bool, reason: str) -> TurnRecord:
    """The memory's record of one turn."""
    return TurnRecord(number, action.sub_goal if action else "", call, verdict, reason)
