"""`react`: a single policy that thinks, searches, reasons, acts and answers, one typed action a turn.

What it is shown each turn is the observation of a POMDP: the question, its own actions, their results as data, the
actions and calls that are left and, if the config says so, the state of its tools.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from pydantic import Field, model_validator
from referencing import Registry

from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.demonstrations import Demonstrator
from midstream.agents.react.actions import (
    ActionName,
    Answer,
    AnyAction,
    CallApi,
    MemoryRetrieve,
    Plan,
    Reasoning,
    Search,
    UnreadableAction,
    action_schema,
    examples,
    read_action,
)
from midstream.agents.react.demonstrate import LESSON, SUMMARISE, ReactDemonstrator
from midstream.agents.react.recall import Recall, record_of
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, Message, Step, ToolCall
from midstream.engines.chat import ChatTokenizer
from midstream.memory.records import WorkingRecord
from midstream.memory.reflections import Reflections
from midstream.memory.retrieve import MemorySettings, MemoryToolset
from midstream.memory.window import ConversationWindow
from midstream.tools import Toolbox
from midstream.tools.marking import RULE, marked, marked_text

_TASK = """Answer the question. Each turn, write one action as a JSON object:
{actions}
{rule}
{tools}"""
_CRITIQUE = (
    "[check] Is that answer right, complete, and in the form that was asked for? Write the action that is right."
)
_SUMMARISE = f"{SUMMARISE} Write down in a few sentences what was found so far and what is still open."


TRAIN = "train"
"""Split of the tasks whose failures are written down."""


class RecallSettings(Config):
    """How much of its own actions an agent is shown."""

    tokens: int = Field(ge=256)
    """Most tokens of a prompt, as far as its fixed parts leave room."""


class ReactSettings(Config):
    """`flow.settings` of the flow `react`."""

    max_actions: int = Field(default=8, ge=1)
    """Most actions of a trajectory. The last one left can only be an answer."""
    actions: tuple[ActionName, ...] = ("reasoning", "search", "call_api", "memory_retrieve", "plan", "answer")
    """The action space. `search`, `call_api` and `memory_retrieve` are left out where there is no tool for them."""
    caps: dict[ActionName, int] = Field(default_factory=dict)
    """Most actions of one kind, such as `{search: 3}`."""
    search_tool: str = "search"
    """The tool that the action `search` calls with its query."""
    constrained: bool = False
    """Sample each action under the JSON schema of those that are left, so that every one is valid, where the engine
    can."""
    answer_schema: dict[str, Any] | None = None
    """JSON schema that the answer must satisfy. Problems go back to the policy while actions are left."""
    instructions: str | None = None
    """System prompt instead of the built-in one; `{actions}` in it is replaced by how each action is written, `{tools}`
    by a list of the tools. A short one is cheaper to sample from; say in it that tool results are data."""
    tool_status: bool = False
    """Show availability, latency and return type of each tool in every turn. They differ from run to run."""
    context_tokens: int | None = Field(default=None, ge=256)
    """Above this many tokens the policy summarises the oldest part of the conversation; the summary is a step that is
    trained like any other."""
    memory: RecallSettings | None = None
    """Above `tokens` tokens, show records of earlier actions instead of the conversation: of those that fit, the most
    recent and the most relevant to question and plan. A record that is left out can return later."""
    self_critique: bool = False
    """Ask the policy to check its answer once before it counts."""
    reflections: MemorySettings | None = None
    """Where failed calls are written down and lessons of earlier trajectories are read. Trajectories of a namespace
    then influence each other, so `trainer.deterministic` refuses it. Attempts at validation and test tasks read lessons
    and write none."""

    @model_validator(mode="after")
    def _one_way_to_shorten(self) -> ReactSettings:
        if self.memory is not None and self.context_tokens is not None:
            raise ValueError("memory and context_tokens both shorten the conversation; set one of them")
        return self


@register("react")
class ReactFlow(AgentFlowBase):
    """One policy, one conversation, typed actions."""

    settings = ReactSettings

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, ReactSettings)
        self.chosen = self.config
        tokenizer = session.role_engines["policy"].tokenizer
        count = (lambda text: len(tokenizer.encode(text))) if tokenizer else (lambda text: len(text) // 4)
        self.window = ConversationWindow(count, self.chosen.context_tokens or 1 << 40)
        self.recall = Recall(count, None if self.chosen.memory is None else self.chosen.memory.tokens)
        self.taken: Counter[str] = Counter()
        self.plan: list[str] = []
        self._start = ""
        self._checked = not self.chosen.self_critique

    @classmethod
    def demonstrator(
        cls, settings: Config, tokenizer: ChatTokenizer, toolbox: Toolbox, *, wrong: float, seed: int
    ) -> Demonstrator:
        assert isinstance(settings, ReactSettings)
        return ReactDemonstrator(
            tokenizer,
            toolbox,
            settings.actions,
            settings.search_tool,
            typed_answer=settings.answer_schema is not None,
            wrong=wrong,
            seed=seed,
        )

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        reflections = await self._open_reflections()
        lessons = [] if reflections is None else await reflections.lessons(self.task.question)
        self.window.add({"role": "system", "content": self._instructions()})
        # Lessons hold results of tools, so they are data like those.
        shown = [marked_text(lesson, LESSON) for lesson in lessons]
        observation = self._start = "\n".join([*shown, f"Question: {self.task.question}"])
        while self.turns < self.chosen.max_actions and self.answer is None:
            self.turns += 1
            step = await self._act(observation)
            observation = await self._taken(step)
        if reflections is not None and self.task.split == TRAIN:
            for call in self.session.tool_calls:
                if not call.ok:
                    await reflections.add(self.task.question, f"{call.tool}: {call.result}", source=step.trajectory_uid)
        return len(self.steps)

    async def _act(self, observation: str) -> Step:
        """Sample the next action."""
        left = self._left()
        self.window.add({"role": "user", "content": f"{observation}\n{self._state(left)}"})
        await self.window.compact(self._summary)
        constraint = None
        if self.chosen.constrained:
            schema = action_schema(left, self._tools(), self.chosen.answer_schema)
            constraint = Constraint(kind="json_schema", grammar=json.dumps(schema))
        query = " ".join([self.task.question, *self.plan])
        messages = self.recall.shown(self.window.messages, self._start, query)
        step = await self.chat(messages, response_format=constraint)
        self.window.add({"role": "assistant", "content": step.text})
        return step

    async def _taken(self, step: Step) -> str:
        """Take the action of `step`; returns what to show next. Sets `answer` when it is final."""
        recorder, confidence = self.session.recorder, confidence_of(step)
        try:
            action = read_action(step.text, self._left())
        except UnreadableAction as error:
            recorder.annotate(step.step_index, parsed=False, parse_error=str(error), turn=self.turns)
            self.session.tool_calls.append(ToolCall.unparsed(error, step.step_index))
            self.recall.add(WorkingRecord(error=str(error)))
            return f"Error: {error}"
        name = action.model_dump()["action"]
        self.taken[name] += 1
        recorder.annotate(
            step.step_index, parsed=True, turn=self.turns, action=action.model_dump(), confidence=confidence
        )
        shown = await self._result(action, step)
        self.recall.add(record_of(action, shown, self.session.tool_calls))
        return shown

    async def _result(self, action: AnyAction, step: Step) -> str:
        match action:
            case Reasoning():
                return "Go on."
            case Plan():
                self.plan = action.steps
                return "Noted."
            case Search():
                return marked(await self._call(self.chosen.search_tool, {"query": action.query}, step))
            case CallApi():
                return marked(await self._call(action.tool, action.args, step))
            case MemoryRetrieve():
                given = {name: value for name in ("query", "key") if (value := getattr(action, name))}
                return marked(await self._call("memory_retrieve", given, step))
            case Answer():
                return self._answered(action.answer)

    async def _call(self, tool: str, arguments: Mapping[str, Any], step: Step) -> ToolCall:
        return await self.call_tool(tool, arguments, step_index=step.step_index)

    def _answered(self, answer: Any) -> str:
        if self.chosen.answer_schema is not None:
            # An empty registry: a reference to elsewhere is an error, and nothing is fetched.
            validator = Draft202012Validator(self.chosen.answer_schema, registry=Registry())
            problems = [error.message for error in validator.iter_errors(answer)]
            if problems:
                return f"Error: the answer does not have the form asked for: {'; '.join(problems)[:400]}"
        if not self._checked and self.turns < self.chosen.max_actions:
            self._checked = True
            return _CRITIQUE
        self.answer = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        return ""

    def _left(self) -> list[str]:
        """The actions that can be taken now."""
        if self.turns >= self.chosen.max_actions:
            return ["answer"]
        caps, tools = self.chosen.caps, self.session.tools
        needs = {"search": self.chosen.search_tool, "memory_retrieve": "memory_retrieve"}
        left: list[str] = []
        for name in self.chosen.actions:
            if name != "answer" and self.taken[name] >= caps.get(name, self.chosen.max_actions):
                continue
            if name in needs and tools.get(needs[name]) is None:
                continue
            if name == "call_api" and not tools.tools:
                continue
            left.append(name)
        return [*left, *([] if "answer" in left else ["answer"])]

    def _state(self, left: Sequence[str]) -> str:
        """The part of the observation that is not the last result: turn, actions and calls left, tools."""
        lines = [f"[turn {self.turns}/{self.chosen.max_actions}] actions: {', '.join(left)}"]
        if (calls := self.session.tools.remaining) is not None:
            lines.append(f"calls left: {calls}")
        if self.plan:
            lines.append(f"plan: {'; '.join(self.plan)}")
        if self.chosen.tool_status:
            lines += [f"{tool.name}: {self.session.tools.status(tool.name)}" for tool in self._tools()]
        return "\n".join(lines)

    def _tools(self) -> list[Any]:
        return self.session.tools.shown(self.task.question)

    def _instructions(self) -> str:
        cards = self.session.tools.cards(self.task.question)
        schema = self.chosen.answer_schema
        form = "" if schema is None else f"\nThe answer must satisfy this JSON schema: {json.dumps(schema)}"
        if self.chosen.instructions is not None:
            return self.chosen.instructions.replace("{actions}", examples(self._left())).replace("{tools}", cards)
        tools = f"Tools:\n{cards}" if cards else "There are no tools."
        return _TASK.format(actions=examples(self._left()), rule=RULE, tools=tools) + form

    async def _summary(self, messages: Sequence[Message]) -> str:
        """What the policy makes of old messages, as a recorded step of its own."""
        asked = {"role": "user", "content": _SUMMARISE}
        step = await self.chat([self.window.messages[0], *messages, asked])
        self.session.recorder.annotate(step.step_index, compaction=len(messages))
        return step.text

    async def _open_reflections(self) -> Reflections | None:
        settings = self.chosen.reflections
        if settings is None:
            return None
        toolset = MemoryToolset(settings)
        await toolset.open()
        self.session.resources.push_async_callback(toolset.close)
        return Reflections(toolset.memory)

    def metadata(self) -> dict[str, Any]:
        recalled = {} if self.chosen.memory is None else {"recalled": self.recall.shortened}
        return {"actions": dict(self.taken), "plan": self.plan, "compactions": self.window.compactions, **recalled}


def confidence_of(step: Step) -> float | None:
    """Geometric mean of the probabilities of the tokens sampled, from 0 to 1; None for an engine that gives none."""
    if not step.rollout_log_probs:
        return None
    return math.exp(sum(step.rollout_log_probs) / len(step.rollout_log_probs))
