"""Members of a team: module roles that a config defines, each with instructions and tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.team.actions import UnreadableReply, json_objects
from midstream.agents.team.constraints import Replies
from midstream.agents.team.demonstrate import TeamDemonstrator
from midstream.core.config import Config
from midstream.core.errors import ConfigError, nearest
from midstream.core.types import Message
from midstream.engines.chat import ChatTokenizer
from midstream.plans.plan import NAME
from midstream.record.replies import ChatStep
from midstream.tools import Toolbox
from midstream.tools.calls import call_schema
from midstream.tools.marking import RULE, marked

POLICY = "policy"


def _role(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("the name of a role is letters, digits, _ and -, at most 64, beginning with a letter")
    return name


class MemberConfig(Config):
    """A member of the team."""

    instructions: str = ""
    """What it does: the beginning of its system prompt, and how other members know it."""
    tools: tuple[str, ...] = ()
    """Tools it may call, by their names in `flow.tools`."""
    max_calls: int = Field(default=4, ge=1)
    """Most tool calls in one turn."""


Members = Annotated[
    dict[Annotated[str, AfterValidator(_role)], MemberConfig],
    Field(min_length=1),
]
"""The team, by role."""


class TeamSettings(Config):
    """Settings that all teams have."""

    members: Members
    """The members, by role. `flow.roles.NAME` sets the engine of each, and whether it is trained."""
    constrained: bool = False
    """Sample replies under a grammar of what a role may write next, so that every whole reply is valid, where the
    engine can. A reply is then one tool call, one action, or text without braces."""

    @model_validator(mode="after")
    def _named(self) -> TeamSettings:
        if POLICY in self.members:
            raise ValueError(f"a member cannot be called '{POLICY}'; choose another role")
        return self

    def check_member(self, name: str, setting: str) -> None:
        """Raise `ValueError` when no member is called `name`."""
        if name not in self.members:
            raise ValueError(f"{setting} names '{name}', which is no member; {nearest(name, self.members)}")


class TeamFlow(AgentFlowBase):
    """Base of flows whose roles are the members of `settings`, and `leads`."""

    settings = TeamSettings
    leads: ClassVar[tuple[str, ...]] = ()
    """Roles beside the members."""

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, TeamSettings)
        offered = {tool.name for tool in session.tools.tools}
        for role, member in self.config.members.items():
            for name in member.tools:
                if name not in offered:
                    raise ConfigError(
                        f"flow.settings.members.{role} has the tool '{name}', and flow.tools has not",
                        nearest(name, offered),
                    )

    @classmethod
    def roles_for(cls, settings: Config) -> tuple[str, ...]:
        assert isinstance(settings, TeamSettings)
        return (*cls.leads, *settings.members)

    @classmethod
    def demonstrator(
        cls, settings: Config, tokenizer: ChatTokenizer, toolbox: Toolbox, *, wrong: float, seed: int
    ) -> TeamDemonstrator:
        return TeamDemonstrator(tokenizer, toolbox, cls.roles_for(settings), wrong=wrong, seed=seed)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A member's turn: the text that ended it, and the step of that text."""

    text: str
    step: ChatStep


class Member:
    """One member within an attempt. `messages` is its own view of the conversation; no other member reads it."""

    def __init__(self, flow: AgentFlowBase, role: str, config: MemberConfig, rules: str = "") -> None:
        self.flow, self.role, self.config = flow, role, config
        self._tools = [tool for tool in flow.session.tools.tools if tool.name in config.tools]
        self.messages: list[Message] = [{"role": "system", "content": self._instructions(rules)}]

    async def speak(self, text: str, *, key: str = "", replies: Replies | None = None) -> Spoken:
        """Show `text` to the member and let it reply, after the tool calls it makes. The exchange is remembered; `key`
        names its calls within the attempt. `replies` are those it is constrained to, if it is, beside tool calls.
        Raises `UnreadableReply` for too many tool calls."""
        self.messages.append({"role": "user", "content": text})
        for number in range(self.config.max_calls + 1):
            named = f"{key}/{number}" if key else ""
            calls = call_schema(self._tools) if self._tools and number < self.config.max_calls else None
            constraint = None if replies is None else replies.constraint(calls)
            step = await self.flow.chat(self.messages, role=self.role, key=named, response_format=constraint)
            self.messages.append({"role": "assistant", "content": step.text})
            asked = self._tool_calls(step.text)
            if not asked:
                return Spoken(step.text, step)
            if number == self.config.max_calls:
                break
            results = [
                await self._call(call, step, f"{named}/tool-{at}" if key else "") for at, call in enumerate(asked)
            ]
            self.messages.append({"role": "user", "content": "\n".join(results)})
        raise UnreadableReply(f"'{self.role}' asked for more than {self.config.max_calls} tool calls in one turn")

    def _tool_calls(self, text: str) -> list[Mapping[str, Any]]:
        """The tool calls of a reply; empty for a reply that is, or holds, anything else."""
        if not self.config.tools:
            return []
        found = json_objects(text)
        return found if found and all("tool" in one for one in found) else []

    async def _call(self, call: Mapping[str, Any], step: ChatStep, key: str) -> str:
        name, args = str(call["tool"]), call.get("args", {})
        if name not in self.config.tools:
            return f"Error: there is no tool '{name}'; {nearest(name, self.config.tools)}"
        if not isinstance(args, Mapping):
            return 'Error: write {"tool": "...", "args": {...}}'
        return marked(await self.flow.call_tool(name, args, step_index=step.step_index, key=key))

    def _instructions(self, rules: str) -> str:
        parts = [self.config.instructions, rules]
        if self.config.tools:
            cards = "\n".join(tool.card for tool in self._tools)
            parts.append(f'To call a tool, write only {{"tool": "...", "args": {{...}}}}. {RULE}\nTools:\n{cards}')
        return "\n".join(part for part in parts if part)


def roster(members: Mapping[str, MemberConfig], names: Collection[str]) -> str:
    """Names and instructions of some members, one per line."""
    return "\n".join(f"- {name}: {members[name].instructions or 'no description'}" for name in members if name in names)
