"""`peers`: equal members that write messages to each other, along the edges of a topology, until one answers.

No member is in charge. Messages wait in mailboxes, the turn rule says who reads next, and limits end what does not end
by itself: each end has a name (`outcome` in the trajectory's metadata).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.agents.base import FlowSession
from midstream.agents.registry import register
from midstream.agents.team.actions import UnreadableReply, single_action, text_of
from midstream.agents.team.constraints import TEXT, Replies, object_of, one_of
from midstream.agents.team.members import Member, TeamFlow, TeamSettings, roster
from midstream.agents.team.topology import Topology, neighbours
from midstream.core.sampling import SamplingParams

Outcome = Literal["running", "answered", "max_hops", "no_progress", "silence", "unreadable"]
"""How an attempt ended. `answered`: by a member that may answer, or by the last message where `answer` says so.
`max_hops`: the messages were used up. `no_progress`: `stall_after` messages in a row had been sent before, as when two
members thank each other. `silence`: nobody had a message to read. `unreadable`: a member wrote no valid reply in
`max_errors` + 1 tries."""
_ANSWER = '{"answer": "..."}'
_MESSAGE = '{"to": "NAME", "message": "..."}'


class PeersSettings(TeamSettings):
    """`flow.settings` of the flow `peers`."""

    topology: Topology = "ring"
    """Who may write to whom. `ring`: each to the next, in the order of `members`. `star`: the hub and the others.
    `full`: everyone to everyone. `edges`: as `edges` says."""
    hub: str = ""
    """The middle of a star; the first member if empty."""
    edges: tuple[tuple[str, str], ...] = ()
    """Pairs (from, to), for the topology `edges`."""
    start: str = ""
    """The member that gets the task; the first one, or the hub, if empty."""
    turn: Literal["mailbox", "round_robin", "rounds"] = "mailbox"
    """Who reads next. `mailbox`: the member with the oldest message. `round_robin`: members with messages, in order.
    `rounds`: the same, but messages written in a round are read in the next one."""
    answer: Literal["explicit", "last_message"] = "explicit"
    """The team's answer. `explicit`: what a member writes as one. `last_message`: also, at the end of `max_hops`, the
    last message, so that members which only write text can pass it on a fixed number of times."""
    answer_by: tuple[str, ...] = ()
    """Members that may answer; all if empty."""
    max_hops: int = Field(default=12, ge=1)
    """Most turns of all members together."""
    stall_after: int = Field(default=2, ge=1)
    """Messages in a row that were sent before, by the same member to the same one, that end the attempt."""
    max_errors: int = Field(default=2, ge=0)
    """Most corrections of invalid replies of a member in a row."""

    @model_validator(mode="after")
    def _connected(self) -> PeersSettings:
        if len(self.members) < 2:
            raise ValueError("peers are at least two members")
        for setting, name in (("start", self.start), ("hub", self.hub)):
            if name:
                self.check_member(name, setting)
        for name in (*self.answer_by, *(name for edge in self.edges for name in edge)):
            self.check_member(name, "answer_by and edges")
        if bool(self.edges) != (self.topology == "edges"):
            raise ValueError("give `edges` with the topology 'edges', and only there")
        if self.hub and self.topology != "star":
            raise ValueError("only the topology 'star' has a hub")
        return self

    @property
    def first(self) -> str:
        """The member that gets the task."""
        return self.start or self.hub or next(iter(self.members))

    @property
    def reach(self) -> dict[str, tuple[str, ...]]:
        """For each member, those to whom it may write."""
        names = list(self.members)
        return neighbours(self.topology, names, self.hub or names[0], self.edges)

    def may_answer(self, role: str) -> bool:
        """Whether `role` may answer."""
        return not self.answer_by or role in self.answer_by


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message. `hop` is the turn in which it was written."""

    giver: str
    to: str
    text: str
    hop: int


@register("peers")
class PeersFlow(TeamFlow):
    """Members that pass messages."""

    settings = PeersSettings

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, PeersSettings)
        self.chosen, self.reach = self.config, self.config.reach
        self.outcome: Outcome = "running"
        self.sent: list[Envelope] = []
        self._mail: deque[Envelope] = deque()
        self._turn: deque[str] = deque(self.chosen.members)
        self._rounds: dict[int, int] = {}
        """Number of the round of each turn."""
        self._repeats = 0
        self._members: dict[str, Member] = {}

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        self._mail.append(Envelope("", self.chosen.first, f"Task: {self.task.question}", 0))
        while self.outcome == "running":
            role = self._next()
            if role is None:
                self.outcome = "silence"
            elif self.turns >= self.chosen.max_hops:
                self._at_limit()
            else:
                self.turns += 1
                await self._act(role, self._take_mail(role))
        return len(self.steps)

    def _next(self) -> str | None:
        """The member that reads next; None when no message waits."""
        if not self._mail:
            return None
        if self.chosen.turn == "mailbox":
            return self._mail[0].to
        waiting = {one.to for one in self._readable()}
        while self._turn[0] not in waiting:
            self._turn.rotate(-1)
        role = self._turn[0]
        self._turn.rotate(-1)
        return role

    def _readable(self) -> list[Envelope]:
        """Messages that may be read now: with `rounds`, those of the oldest round."""
        if self.chosen.turn != "rounds":
            return list(self._mail)
        oldest = min(self._round(one) for one in self._mail)
        return [one for one in self._mail if self._round(one) == oldest]

    def _round(self, one: Envelope) -> int:
        return self._rounds.get(one.hop, 0)

    def _take_mail(self, role: str) -> list[Envelope]:
        taken = [one for one in self._readable() if one.to == role]
        self._rounds[self.turns] = 1 + max(self._round(one) for one in taken)
        self._mail = deque(one for one in self._mail if one not in taken)
        return taken

    async def _act(self, role: str, mail: Sequence[Envelope]) -> None:
        """Show a member its mail, and deliver what it writes."""
        shown = "\n".join(f"[from {one.giver}] {one.text}" if one.giver else one.text for one in mail)
        for _ in range(self.chosen.max_errors + 1):
            try:
                spoken = await self._member(role).speak(shown, replies=self._replies(role))
            except UnreadableReply as error:
                shown = f"Error: {error}"
                continue
            index = spoken.step.step_index
            try:
                to, text = self._read(role, spoken.text)
            except UnreadableReply as error:
                self.session.recorder.annotate(index, parsed=False, parse_error=str(error), hop=self.turns)
                shown = f"Error: {error}"
                continue
            self.session.recorder.annotate(index, parsed=True, hop=self.turns, to=to)
            if not to:
                self.answer, self.outcome = text, "answered"
            else:
                self._deliver(role, to, text)
            return
        self.outcome = "unreadable"

    def _replies(self, role: str) -> Replies | None:
        """What a member may write, if it is constrained."""
        if not self.chosen.constrained:
            return None
        able, schemas = self.reach[role], list[Mapping[str, Any]]()
        if len(able) > 1:
            schemas.append(object_of({"to": one_of(able), "message": TEXT}))
        if self.chosen.may_answer(role) and self.chosen.answer == "explicit":
            schemas.append(object_of({"answer": TEXT}))
        return Replies(tuple(schemas), text=len(able) == 1)

    def _read(self, role: str, text: str) -> tuple[list[str], str]:
        """Receivers and text of a reply; no receivers for an answer."""
        able = self.reach[role]
        examples = {"to": _MESSAGE, **({"answer": _ANSWER} if self.chosen.may_answer(role) else {})}
        kind, action = single_action(text, examples)
        if kind == "answer":
            return [], text_of(action, "answer", _ANSWER)
        if kind == "to":
            named = action["to"] if isinstance(action["to"], list) else [action["to"]]
            if not named:
                raise UnreadableReply(f"the message names nobody; write {_MESSAGE}")
            for name in named:
                if name not in able:
                    raise UnreadableReply(f"'{role}' cannot write to '{str(name)[:40]}'; it can to: {', '.join(able)}")
            return list(dict.fromkeys(named)), text_of(action, "message", _MESSAGE)
        if len(able) == 1 and text.strip():
            return list(able), text.strip()
        raise UnreadableReply(f"write {' or '.join(examples.values())}")

    def _deliver(self, role: str, to: Sequence[str], text: str) -> None:
        for name in to:
            known = any((one.giver, one.to, one.text) == (role, name, text) for one in self.sent)
            self._repeats = self._repeats + 1 if known else 0
            envelope = Envelope(role, name, text, self.turns)
            self.sent.append(envelope)
            self._mail.append(envelope)
        if self._repeats >= self.chosen.stall_after:
            self.outcome = "no_progress"

    def _at_limit(self) -> None:
        if self.chosen.answer == "last_message" and self.sent:
            self.answer, self.outcome = self.sent[-1].text, "answered"
        else:
            self.outcome = "max_hops"

    def _member(self, role: str) -> Member:
        if role not in self._members:
            able, rules = self.reach[role], list[str]()
            if len(able) == 1:
                rules.append(f"What you write goes to {able[0]}.")
            elif able:
                rules += [f"To write to another one, write only {_MESSAGE}, with NAME one of:"]
            if able:
                rules.append(roster(self.chosen.members, able))
            if self.chosen.may_answer(role) and self.chosen.answer == "explicit":
                rules.append(f"When the task is done, write only {_ANSWER}.")
            self._members[role] = Member(self, role, self.chosen.members[role], "\n".join(rules))
        return self._members[role]

    def metadata(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "messages": [asdict(one) for one in self.sent]}
