"""The four modules. Each reads and writes the trajectory's memory, and is a model call or, without a role engine, a
rule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from midstream.agents.agentflow.actions import NO_TOOL, NextStep, Notation, PlanField, UnreadableAction, read_action
from midstream.agents.base import AgentFlowBase
from midstream.core.types import Step, ToolCall
from midstream.memory.working import Exchange, Turn, WorkingMemory

StopRule = Literal["planner", "evidence"]
_OPERATION = re.compile(r"(?<![\w.])\d|\b(half|twice|double|triple|third|quarter|sum|difference|product)\b")
"""What a question that must be worked out states: a number of its own, or one of these words."""


@dataclass(slots=True)
class Conversation:
    """Where the modules of one trajectory sit: the flow they speak through, their memory, and what the next to speak
    must hear first."""

    flow: AgentFlowBase
    memory: WorkingMemory
    news: str
    """What happened since somebody last spoke."""

    def has(self, role: str) -> bool:
        return role in self.flow.session.role_engines

    async def ask(self, role: str, request: str) -> Step:
        """Let `role` speak on the news and `request`, and remember it."""
        asked = f"{self.news}\n{request}" if self.news else request
        step = await self.flow.chat(self.memory.messages(asked), role=role)
        self.memory.remember(Exchange(role, asked, step.text))
        self.news = ""
        return step


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner said: an action, or why none could be read from it; and the step it said it in."""

    action: NextStep | None
    problem: str
    step: Step


@dataclass(frozen=True, slots=True)
class Planner:
    """Analyses the query once, then each turn chooses one action."""

    notation: Notation
    required: tuple[PlanField, ...]

    async def analyse(self, table: Conversation) -> None:
        """Turn 0, when the role `analysis` has a role engine: what the query needs, kept in memory."""
        if table.has("analysis"):
            table.memory.analysis = (await table.ask("analysis", "[analysis]")).text

    async def next_step(self, table: Conversation, turn: int, turns: int) -> Plan:
        left = table.flow.session.tools.remaining
        budget = "" if left is None else f", calls left: {left}"
        step = await table.ask("planner", f"[planner {turn}/{turns}{budget}]")
        recorder = table.flow.session.recorder
        try:
            action = read_action(step.text, self.notation, table.flow.session.tools.toolbox, self.required)
        except UnreadableAction as error:
            recorder.annotate(step.step_index, parse_error=str(error), turn=turn)
            return Plan(None, str(error), step)
        recorder.annotate(step.step_index, parsed=True, turn=turn, action=action.model_dump())
        return Plan(action, "", step)


@dataclass(frozen=True, slots=True)
class Executor:
    """Carries out an action: checks it and calls the tool within its time and budget. With a role engine it writes the
    arguments itself."""

    async def execute(self, table: Conversation, plan: Plan) -> ToolCall:
        session = table.flow.session
        if plan.action is None:
            call = ToolCall(
                tool="",
                arguments={},
                ok=False,
                result=f"Error: {plan.problem}",
                error_kind="unparsed",
                step_index=plan.step.step_index,
            )
            session.tool_calls.append(call)
            return call
        if plan.action.tool == NO_TOOL:
            return ToolCall(tool=NO_TOOL, arguments={}, ok=True, result="", step_index=plan.step.step_index)
        arguments, step = plan.action.arguments, plan.step
        if table.has("executor"):
            step = await table.ask("executor", f"[executor {plan.action.tool}]")
            arguments = self._written(table, plan.action.tool, step.text)
        call = await session.tools.call(plan.action.tool, arguments, step_index=step.step_index)
        session.tool_calls.append(call)
        return call

    def _written(self, table: Conversation, tool: str, text: str) -> dict[str, object]:
        try:
            return read_action(f"{tool}: {text}", "compact", table.flow.session.tools.toolbox).arguments
        except UnreadableAction:
            return {"input": text}


@dataclass(frozen=True, slots=True)
class Verifier:
    """Judges whether memory holds what the answer needs: 1 stops, 0 goes on. By rule: `stop_rule` of the flow."""

    rule: StopRule

    async def verify(self, table: Conversation, action: NextStep | None, call: ToolCall) -> tuple[bool, str]:
        if table.has("verifier"):
            step = await table.ask("verifier", "[verifier] yes or no")
            word = step.text.strip().lower()
            verdict = word.startswith("yes")
            table.flow.session.recorder.annotate(
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
        if call.tool != "calculator" and _OPERATION.search(table.memory.query.lower()):
            return False, "the question asks for a calculation"
        return True, "what was asked for is there"


@dataclass(frozen=True, slots=True)
class Generator:
    """Writes the final answer from memory. By rule: the last thing found."""

    async def answer(self, table: Conversation) -> str:
        if table.has("generator"):
            return (await table.ask("generator", "[generator]")).text.strip()
        found = table.memory.found()
        return found[-1] if found else ""


def turn_record(number: int, action: NextStep | None, call: ToolCall, verdict: bool, reason: str) -> Turn:
    """The memory's record of a turn."""
    return Turn(number, action.sub_goal if action else "", call, verdict, reason)
