"""The flow `autonomous` (also `autogpt`): a goal, a task list of its own, a progress ledger, and an end with a name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.agents.autonomous.ledger import Ledger
from midstream.agents.autonomous.turns import AgentTurn, UnreadableTurn, examples, read_turn, turn_schema
from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.budget import AgentBudget, Spending
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.errors import ConfigError, nearest
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message, Step, ToolCall
from midstream.memory.window import ConversationWindow
from midstream.tools.errors import OVER_BUDGET
from midstream.tools.marking import RULE, marked

Outcome = Literal["unfinished", "finished", "stopped", "gave_up", "stalled", "turns", "budget"]
"""How an attempt ended. `unfinished`: it failed, see its status and error. `finished`: with an answer of its own.
`stopped`: a tool of `stop_after` succeeded. `gave_up`: the agent said that the goal cannot be reached. `stalled`: no
progress, also after new approaches. `turns`, `budget`: a limit was reached. After the last three the agent was asked
once more for an answer."""

_SYSTEM = """Reach the goal. {lead}Each turn, write one JSON object:
{actions}
{rule}
{tools}"""
_LEAD = "Keep a list of tasks, and work on one at a time. "
_STALLED = "[stalled] Nothing new came of the last {turns} turns. {advice}"
_OTHER_TASKS = "Your open tasks were dropped: write down what is missing, add other tasks, and try another way."
_OTHER_WAY = "Try another way."
_LAST = "[last turn: {why}] Write finish with the best answer you have, or give_up."
_CRITIC = """Goal: {goal}
{record}
Answer: {answer}
Does the answer reach the goal, and is it supported by the results? Write yes or no, then why."""
_SUMMARISE = "[summary] Write down in a few sentences what was found so far and what is still open."


class AutonomousSettings(Config):
    """`flow.settings` of the flow `autonomous`."""

    max_turns: int = Field(default=16, ge=1)
    """Most turns of an attempt."""
    stall_after: int = Field(default=3, ge=1)
    """Turns in a row without progress after which a message asks the agent to try another way. Progress is a new tool
    result, or a task done."""
    max_restarts: int = Field(default=1, ge=0)
    """Most such messages; after the last one the attempt ends as `stalled`."""
    max_critiques: int = Field(default=1, ge=0)
    """How often an answer is criticised before it counts. With an engine for the role `critic`, an answer it does not
    accept comes back with its reasons; by rule, one given while tasks are open does."""
    stop_after: tuple[str, ...] = ()
    """Tools that end the attempt when a call of them succeeds; its result is the answer."""
    ends: tuple[Literal["finish", "give_up"], ...] = ("finish", "give_up")
    """Ends that the agent may choose itself. Without any, only a tool of `stop_after` or a limit ends the attempt."""
    thoughts: bool = True
    """Let each turn begin with a thought and change the task list. Without, a turn is an action and the agent is asked
    for nothing else; for small models."""
    instructions: str | None = None
    """System prompt instead of the built-in one; `{actions}` in it is replaced by how each action is written, `{tools}`
    by a list of the tools. A short one is cheaper to sample from; say in it that tool results are data."""
    constrained: bool = False
    """Sample each turn under its JSON schema, so that every one can be read, where the engine can."""
    context_tokens: int | None = Field(default=None, ge=256)
    """Above this many tokens the agent summarises the oldest part of the conversation."""
    budget: AgentBudget = AgentBudget()
    """Limits of one attempt."""

    @model_validator(mode="after")
    def _can_end(self) -> AutonomousSettings:
        if not self.ends and not self.stop_after:
            raise ValueError("without `ends`, name tools in `stop_after`, or no attempt reaches its goal")
        return self


@register("autogpt")
@register("autonomous")
class AutonomousFlow(AgentFlowBase):
    """One agent in a loop, and a critic of its answer."""

    settings = AutonomousSettings
    roles = ("policy", "critic")
    by_rule = ("critic",)

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, AutonomousSettings)
        self.chosen = self.config
        self.spending = Spending(self, self.chosen.budget)
        tokenizer = session.role_engines["policy"].tokenizer
        count = (lambda text: len(tokenizer.encode(text))) if tokenizer else (lambda text: len(text) // 4)
        self.window = ConversationWindow(count, self.chosen.context_tokens or 1 << 40)
        self.ledger = Ledger()
        self.outcome: Outcome = "unfinished"
        self.limit = ""
        """The limit that ended the attempt, or the reason it gave up for."""
        self._restarts = self._critiques = 0

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        for name in self.chosen.stop_after:
            if self.session.tools.get(name) is None:
                known = [tool.name for tool in self.session.tools.tools]
                raise ConfigError(f"flow.settings.stop_after names the tool '{name}'", nearest(name, known))
        self.window.add({"role": "system", "content": self._instructions()})
        observation = f"Goal: {self.task.question}"
        while self.outcome == "unfinished":
            if why := self._over():
                await self._last_turn(observation, why)
                break
            self.turns += 1
            step = await self._ask("\n".join([observation, *self._state()]), may_act=True)
            observation = await self._taken(step)
        return len(self.steps)

    def _instructions(self) -> str:
        cards = self.session.tools.cards(self.task.question)
        actions = examples(self.chosen.ends, self.chosen.thoughts)
        if self.chosen.instructions is not None:
            return self.chosen.instructions.replace("{actions}", actions).replace("{tools}", cards)
        tools = f"Tools:\n{cards}" if cards else "There are no tools."
        return _SYSTEM.format(lead=_LEAD if self.chosen.thoughts else "", actions=actions, rule=RULE, tools=tools)

    def _over(self) -> str:
        """Why no further turn is taken; sets the outcome. Empty while there is one."""
        if limit := self.spending.exhausted:
            self.outcome, self.limit = "budget", limit
            return f"the budget of {limit} is used up"
        if self.turns >= self.chosen.max_turns:
            self.outcome = "turns"
            return "no turns are left"
        if self.ledger.stalled_turns >= self.chosen.stall_after and self._restarts >= self.chosen.max_restarts:
            self.outcome = "stalled"
            return "no progress"
        return ""

    async def _last_turn(self, observation: str, why: str) -> None:
        """Ask for an answer although the attempt is over. It keeps its outcome."""
        if "finish" not in self.chosen.ends:
            return
        step = await self._ask(f"{observation}\n{_LAST.format(why=why)}", may_act=False)
        try:
            turn = read_turn(step.text, may_act=False)
        except UnreadableTurn as error:
            self._unparsed(step, error)
            return
        self.session.recorder.annotate(step.step_index, parsed=True, turn=turn.model_dump(exclude_none=True))
        if turn.finish is not None:
            self.answer = _text(turn.finish)

    async def _ask(self, content: str, *, may_act: bool) -> Step:
        self.window.add({"role": "user", "content": content})
        await self.window.compact(self._summary)
        constraint = None
        if self.chosen.constrained:
            tools = self.session.tools.shown(self.task.question)
            schema = turn_schema(tools, may_act, ends=self.chosen.ends, thoughts=self.chosen.thoughts)
            constraint = {"type": "json_schema", "json_schema": {"name": "turn", "schema": schema}}
        step = await self.chat(self.window.messages, response_format=constraint)
        self.window.add({"role": "assistant", "content": step.text})
        return step

    async def _taken(self, step: Step) -> str:
        """Act on a turn; returns what to show next."""
        try:
            turn = read_turn(step.text, ends=self.chosen.ends)
        except UnreadableTurn as error:
            self._unparsed(step, error)
            self.ledger.record(self.turns, "unparsed", str(error), "")
            return self._observed(f"Error: {error}. Write one of:\n{examples(self.chosen.ends, self.chosen.thoughts)}")
        self.session.recorder.annotate(step.step_index, parsed=True, turn=turn.model_dump(exclude_none=True))
        for text in turn.add:
            self.ledger.add(text)
        done = [number for number in turn.done if self.ledger.finish(number)]
        progress = f"tasks done: {', '.join(map(str, done))}" if done else ""
        if turn.give_up is not None:
            self.outcome, self.limit = "gave_up", turn.give_up
            self.ledger.record(self.turns, "give_up", turn.give_up, progress or "ended")
            return ""
        if turn.finish is not None:
            return await self._finished(turn, progress)
        if turn.tool is None:
            self.ledger.record(self.turns, "tasks", ", ".join(turn.add), progress)
            return self._observed("Noted.")
        return await self._acted(turn, step, progress)

    async def _acted(self, turn: AgentTurn, step: Step, progress: str) -> str:
        assert turn.tool is not None
        call = await self.call_tool(turn.tool, turn.args, step_index=step.step_index)
        if self.ledger.is_new(call):
            progress = f"{progress}; new result" if progress else "new result"
        self.ledger.record(self.turns, "tool", f"{turn.tool}({json.dumps(turn.args)[:200]})", progress)
        if call.ok and turn.tool in self.chosen.stop_after:
            self.outcome, self.answer = "stopped", call.result
        elif call.error_kind == OVER_BUDGET:
            self.outcome, self.limit = "budget", "tool_calls"
            await self._last_turn(marked(call), "no tool can be called any more")
        return self._observed(marked(call))

    async def _finished(self, turn: AgentTurn, progress: str) -> str:
        problem = ""
        if self._critiques < self.chosen.max_critiques and self.turns < self.chosen.max_turns:
            self._critiques += 1
            problem = await self._criticised(_text(turn.finish))
        if not problem:
            self.outcome, self.answer = "finished", _text(turn.finish)
            self.ledger.record(self.turns, "finish", self.answer, progress or "finished")
            return ""
        self.ledger.record(self.turns, "finish", problem, progress)
        return self._observed(f"[critique] {problem}")

    async def _criticised(self, answer: str) -> str:
        """What is wrong with an answer; empty when it is accepted."""
        if "critic" not in self.session.role_engines:
            left = self.ledger.open_tasks
            return f"These tasks are open: {'; '.join(left)}. Finish again if they are not needed." if left else ""
        record = "\n".join(marked(call) for call in self.session.tool_calls[-8:]) or "No tool was called."
        asked = f"{RULE}\n{_CRITIC.format(goal=self.task.question, record=record, answer=answer)}"
        step = await self.chat([{"role": "user", "content": asked}], role="critic")
        word = step.text.strip().lower()
        accepted = not word.startswith("no")
        self.session.recorder.annotate(step.step_index, verdict=accepted, parsed=word.startswith(("yes", "no")))
        return "" if accepted else step.text.strip()

    def _observed(self, text: str) -> str:
        """Return `text`, with the message for a stalled agent if it is due."""
        stalled = self.ledger.stalled_turns
        if stalled < self.chosen.stall_after or self._restarts >= self.chosen.max_restarts:
            return text
        self._restarts += 1
        self.ledger.restart()
        advice = _OTHER_TASKS if self.chosen.thoughts else _OTHER_WAY
        return f"{text}\n{_STALLED.format(turns=stalled, advice=advice)}"

    def _unparsed(self, step: Step, error: UnreadableTurn) -> None:
        self.session.recorder.annotate(step.step_index, parsed=False, parse_error=str(error))
        self.session.tool_calls.append(ToolCall.unparsed(error, step.step_index))

    def _state(self) -> list[str]:
        """Lines of the observation below the last result: the task list, turns and calls left."""
        listed = [self.ledger.shown()] if self.chosen.thoughts or self.ledger.tasks else []
        left = self.session.tools.remaining
        if self.chosen.max_turns == 1 and left is None:
            return listed
        calls = "" if left is None else f", calls left: {left}"
        return [*listed, f"[turn {self.turns}/{self.chosen.max_turns}{calls}]"]

    async def _summary(self, messages: Sequence[Message]) -> str:
        """What the agent makes of old messages, as a recorded step of its own."""
        asked = {"role": "user", "content": _SUMMARISE}
        step = await self.chat([self.window.messages[0], *messages, asked])
        self.session.recorder.annotate(step.step_index, compaction=len(messages))
        return step.text

    def metadata(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "limit": self.limit, "restarts": self._restarts, **self.ledger.as_json()}


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
