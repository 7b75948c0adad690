"""The flow `agentflow`: plan, execute, verify, until the verifier stops it or turns run out; then generate the
answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from pydantic import Field, model_validator

from midstream.agents.agentflow.actions import ActionField, Notation
from midstream.agents.agentflow.demonstrate import AgentFlowDemonstrator
from midstream.agents.agentflow.modules import (
    ROLES,
    Conversation,
    Executor,
    Generator,
    Planner,
    StopRule,
    Verifier,
    turn_record,
)
from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.demonstrations import Demonstrator
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.sampling import SamplingParams
from midstream.engines.chat import ChatTokenizer
from midstream.memory.working import WorkingMemory
from midstream.tools import Toolbox
from midstream.tools.marking import escape_headers

_COMPACT = """Answer the question with tools, one step at a time.
{tools}
none - Nothing to look up or work out.
[planner]: write {fields}TOOL: INPUT.
[generator]: write only the answer."""

_JSON = """Answer the question with tools, one step at a time.
{tools}
none() - Nothing to look up or work out.
[analysis]: say what the question asks, which skills and which tools it needs.
[planner t/T]: write one JSON object with the keys {fields}"tool" and "arguments" (an object); \
the tool none when the results so far are enough. t is the turn, T the most there are.
[executor TOOL]: write only the arguments of TOOL as a JSON object.
[verifier]: say yes when the results so far answer the question, else no; then why.
[generator]: write only the final answer, from the results."""

_MODULES = """Answer the question with tools, one step at a time.
{tools}
none - Nothing to look up or work out.
[analysis]: say what the question needs.
[planner t/T]: write a JSON object with {fields}"tool".
[executor TOOL]: write the arguments of TOOL as a JSON object.
[verifier]: write yes when the results answer the question, else no.
[generator]: write only the answer."""


class AgentFlowSettings(Config):
    """`flow.settings` of the flow `agentflow`."""

    max_turns: int = Field(default=3, ge=1)
    """Maximum turns of plan, execute, verify (T_max)."""
    notation: Notation = "json"
    """How the planner writes its actions: `json`, or `compact` for small models."""
    fields: tuple[ActionField, ...] = ("justification", "context", "sub_goal")
    """Fields the planner must write besides tool and arguments. Fewer fields cost fewer tokens."""
    stop_rule: StopRule = "planner"
    """When a verifier without an engine stops. `planner`: when the planner requests no more tools. `evidence`: when a
    call succeeded and, if the question asks for a calculation, the calculator was called; this saves a turn, and suits
    questions that need one look-up and one calculation."""
    constrained: bool = False
    """Sample under the schema of what can be read, where the engine can: the planner's action, the arguments of an
    executor, and `yes` or `no` of a verifier. Needs the notation `json`. The planner leaves arguments to an executor
    with an engine."""
    memory_tokens: int = Field(default=2048, ge=64)
    """Token budget of the memory. When it is exceeded, the longest old results are shortened."""
    instructions: str | None = None
    """System prompt instead of the built-in one; `{tools}` in it is replaced by a list of the tools."""

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        if self.constrained and self.notation != "json":
            raise ValueError("constrained needs notation: json")
        return self


@register("agentflow")
class AgentFlow(AgentFlowBase):
    """Planner, executor, verifier and generator around one evolving memory. A role without an engine follows a rule."""

    settings = AgentFlowSettings
    roles = ROLES
    by_rule = ("analysis", "executor", "verifier", "generator")

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, AgentFlowSettings)
        self.chosen = self.config
        tokenizer = session.role_engines["policy"].tokenizer
        count = (lambda text: len(tokenizer.encode(text))) if tokenizer else (lambda text: len(text) // 4)
        self.memory = WorkingMemory(self._instructions(), self.task.question, count, self.chosen.memory_tokens)

    @classmethod
    def demonstrator(
        cls, settings: Config, tokenizer: ChatTokenizer, toolbox: Toolbox, *, wrong: float, seed: int
    ) -> Demonstrator:
        assert isinstance(settings, AgentFlowSettings)
        return AgentFlowDemonstrator(tokenizer, toolbox, settings.notation, settings.fields, wrong=wrong, seed=seed)

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        conversation = Conversation(self, self.memory, self.task.question, self.chosen.constrained)
        planner, executor = Planner(self.chosen.notation, self.chosen.fields), Executor()
        verifier, generator = Verifier(self.chosen.stop_rule), Generator()
        await planner.analyse(conversation)
        for turn in range(1, self.chosen.max_turns + 1):
            self.turns = turn
            decision = await planner.next_step(conversation, turn, self.chosen.max_turns)
            call = await executor.execute(conversation, decision)
            conversation.observation = call.result
            stop, reason = await verifier.verify(conversation, decision.action, call)
            self.memory.turns.append(turn_record(turn, decision.action, call, stop, reason))
            if stop:
                break
        self.answer = await generator.answer(conversation)
        return len(self.steps)

    def metadata(self) -> dict[str, Any]:
        return {
            "analysis": self.memory.analysis,
            "shortened": self.memory.shortened,
            "turns": [{**asdict(turn), "call": turn.call.step_index} for turn in self.memory.turns],
        }

    def _instructions(self) -> str:
        cards = escape_headers(self.session.tools.cards(self.task.question), ROLES)
        if self.chosen.instructions is not None:
            return self.chosen.instructions.replace("{tools}", cards)
        if self.chosen.constrained and "executor" in self.session.role_engines:
            return _MODULES.replace("{tools}", cards).replace(
                "{fields}", "".join(f'"{name}", ' for name in self.chosen.fields)
            )
        if self.chosen.notation == "json":
            return _JSON.replace("{tools}", cards).replace(
                "{fields}", "".join(f'"{name}", ' for name in self.chosen.fields)
            )
        return _COMPACT.replace("{tools}", cards).replace(
            "{fields}", "".join(f"{name}: ..., " for name in self.chosen.fields)
        )
