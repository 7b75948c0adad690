"""`handoff`: one member acts at a time, and hands the task over to another when that one suits it better.

A handoff is exclusive: a reply that holds one beside a tool call or an answer is refused as a whole, and the member is
told so. What the next member sees of the conversation is the context policy's decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.agents.base import FlowSession
from midstream.agents.registry import register
from midstream.agents.team.actions import UnreadableReply, single_action, text_of
from midstream.agents.team.constraints import TEXT, Replies, object_of, one_of
from midstream.agents.team.context import ContextPolicy, Utterance, handed_over
from midstream.agents.team.members import Member, TeamFlow, TeamSettings, roster
from midstream.core.sampling import SamplingParams

Outcome = Literal["running", "answered", "ping_pong", "unreadable"]
"""How an attempt ended. `ping_pong`: two members handed the task back and forth with messages that were not new.
`unreadable`: a member wrote no valid action in `max_errors` + 1 replies."""
_EXAMPLES = {
    "handoff": '{"handoff": "NAME", "message": "..."}',
    "answer": '{"answer": "..."}',
}


class HandoffSettings(TeamSettings):
    """`flow.settings` of the flow `handoff`."""

    start: str = ""
    """The member that begins; the first one if empty."""
    handoffs: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Whom a member may hand over to; a member left out may hand over to all others."""
    context: ContextPolicy = ContextPolicy()
    """What the next member sees of the conversation."""
    max_handoffs: int = Field(default=6, ge=1)
    """Most handoffs of an attempt; after them only an answer is possible."""
    max_errors: int = Field(default=2, ge=0)
    """Most corrections of invalid replies of a member in a row."""

    @model_validator(mode="after")
    def _known(self) -> HandoffSettings:
        if self.start:
            self.check_member(self.start, "start")
        for name, others in self.handoffs.items():
            for one in (name, *others):
                self.check_member(one, "handoffs")
        return self

    def may_receive(self, role: str) -> list[str]:
        """Members to whom `role` may hand over."""
        return [one for one in self.handoffs.get(role, tuple(self.members)) if one != role]


@register("handoff")
class HandoffFlow(TeamFlow):
    """Members that hand a task to each other until one answers."""

    settings = HandoffSettings

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, HandoffSettings)
        self.chosen = self.config
        self.said: list[Utterance] = []
        self.handoffs: list[dict[str, str]] = []
        self.outcome: Outcome = "running"
        self._members: dict[str, Member] = {}

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        role = self.chosen.start or next(iter(self.chosen.members))
        shown = f"Task: {self.task.question}"
        while self.outcome == "running":
            self.turns += 1
            action = await self._act(self._member(role), shown)
            if action is None:
                self.outcome = "unreadable"
            elif action[0] == "answer":
                self.answer, self.outcome = action[1], "answered"
            else:
                previous, (role, message) = role, action
                shown = await self._hand_over(previous, role, message)
        return len(self.steps)

    async def _act(self, member: Member, shown: str) -> tuple[str, str] | None:
        """Let a member act until its reply is an action: `("answer", text)` or `(role, message)`. None if it writes no
        valid one."""
        for _ in range(self.chosen.max_errors + 1):
            try:
                spoken = await member.speak(shown, replies=self._replies(member.role))
            except UnreadableReply as error:
                shown = f"Error: {error}"
                continue
            recorder, index = self.session.recorder, spoken.step.step_index
            try:
                action = self._read(member.role, spoken.text)
            except UnreadableReply as error:
                recorder.annotate(index, parsed=False, parse_error=str(error), turn=self.turns)
                shown = f"Error: {error}"
                continue
            recorder.annotate(index, parsed=True, turn=self.turns, action=list(action))
            self.said.append(Utterance(member.role, action[1]))
            return action
        return None

    def _replies(self, role: str) -> Replies | None:
        """What a member may write, if it is constrained."""
        if not self.chosen.constrained:
            return None
        schemas = [object_of({"answer": TEXT})]
        if receivers := self._receivers(role):
            schemas.append(object_of({"handoff": one_of(receivers), "message": TEXT}))
        return Replies(tuple(schemas))

    def _read(self, role: str, text: str) -> tuple[str, str]:
        kind, action = single_action(text, _EXAMPLES)
        if kind == "answer":
            return "answer", text_of(action, "answer", _EXAMPLES["answer"])
        if kind == "handoff":
            left = self._receivers(role)
            name = action["handoff"]
            if name not in left:
                able = f"hand over to one of: {', '.join(left)}" if left else "no handoff is left: write the answer"
                raise UnreadableReply(f"'{role}' cannot hand over to '{str(name)[:40]}'; {able}")
            return str(name), text_of(action, "message", _EXAMPLES["handoff"])
        if not text.strip():
            raise UnreadableReply(f"write {_EXAMPLES['answer']} or {_EXAMPLES['handoff']}")
        return "answer", text.strip()

    def _receivers(self, role: str) -> list[str]:
        return self.chosen.may_receive(role) if len(self.handoffs) < self.chosen.max_handoffs else []

    async def _hand_over(self, giver: str, role: str, message: str) -> str:
        """Note the handoff, and return what the next member is shown."""
        handoff = {"from": giver, "to": role, "message": message}
        if handoff in self.handoffs:
            self.outcome = "ping_pong"
        self.handoffs.append(handoff)
        if self.outcome != "running":
            return ""

        async def summarise() -> str:
            asked = "Summarise for the next one in a few sentences what was found and what is still open."
            messages = [*self._member(giver).messages, {"role": "user", "content": asked}]
            step = await self.chat(messages, role=giver)
            self.session.recorder.annotate(step.step_index, handoff_summary=role)
            return step.text

        # The message itself is shown below, so it is no part of what was said before.
        seen = await handed_over(self.chosen.context, self.said[:-1], summarise)
        parts = [f"Task: {self.task.question}", seen, f"{giver} handed over to you: {message}"]
        return "\n".join(part for part in parts if part)

    def _member(self, role: str) -> Member:
        """The member's view of this attempt, which begins with its first turn."""
        if role not in self._members:
            others = self.chosen.may_receive(role)
            rules = [f"To answer, write only {_EXAMPLES['answer']}."]
            if others:
                rules.append(f"To hand the task over, write only {_EXAMPLES['handoff']}, with NAME one of:")
                rules.append(roster(self.chosen.members, others))
            self._members[role] = Member(self, role, self.chosen.members[role], "\n".join(rules))
        return self._members[role]

    def metadata(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "handoffs": self.handoffs}
