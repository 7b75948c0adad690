"""`simulated_user`: the agent talks with a user that a model plays.

The user is a role of its own, with its own instructions, its own view of the conversation and its own steps. It is
frozen and not trained unless the config sets `flow.roles.user.train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message

Outcome = Literal["running", "user_done", "max_turns", "no_progress"]
"""How a conversation ended. `user_done`: the user wrote `done_word`, or its script is over. `no_progress`: both
repeated what they said the turn before."""
SCRIPT = "user_turns"
"""Key of a task's metadata: what the user says, when its engine is `rules`."""


class SimulatedUserSettings(Config):
    """`flow.settings` of the flow `simulated_user`."""

    instructions: str = ""
    """System prompt of the agent; none if empty."""
    user_instructions: str = (
        "You play a user who wants the goal below. Write only what the user says next. "
        "When the goal is reached, write {done_word}.\nGoal: {goal}"
    )
    """System prompt of the user. `{goal}` stands for the task, or its `user_goal`, and `{done_word}` for that word."""
    opening: Literal["task", "user"] = "task"
    """What begins the conversation: the task as it is, or a message that the user writes to reach its goal."""
    done_word: str = Field(default="DONE", min_length=1)
    """The word by which the user ends the conversation."""
    max_turns: int = Field(default=4, ge=1)
    """Most replies of the agent."""


@register("simulated_user")
class SimulatedUserFlow(AgentFlowBase):
    """The agent, `assistant`, and a simulated `user`. The agent's last reply is the answer."""

    settings = SimulatedUserSettings
    roles = ("assistant", "user")
    by_rule = ("user",)
    frozen = ("user",)

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, SimulatedUserSettings)
        self.chosen = self.config
        self.outcome: Outcome = "running"
        system = self.chosen.instructions
        self._agent: list[Message] = [{"role": "system", "content": system}] if system else []
        goal = str(self.task.metadata.get("user_goal") or self.task.question)
        about = self.chosen.user_instructions.replace("{goal}", goal).replace("{done_word}", self.chosen.done_word)
        self._user: list[Message] = [{"role": "system", "content": about}]
        self._script = list(self.task.metadata.get(SCRIPT, ()))

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        said: str | None = self.task.question
        if self.chosen.opening == "user":
            said = await self._user_says("The assistant is there. Say what you want.")
        else:
            self._user.append({"role": "user", "content": "The assistant is there. Say what you want."})
            self._user.append({"role": "assistant", "content": said})
        exchanges: list[tuple[str, str]] = []
        while self.outcome == "running" and said is not None:
            self.turns += 1
            self._agent.append({"role": "user", "content": said})
            step = await self.chat(self._agent, role="assistant")
            self._agent.append({"role": "assistant", "content": step.text})
            self.answer = step.content.strip()
            exchanges.append((said, step.text))
            if len(exchanges) > 1 and exchanges[-1] == exchanges[-2]:
                self.outcome = "no_progress"
            elif self.turns >= self.chosen.max_turns:
                self.outcome = "max_turns"
            else:
                said = await self._user_says(self.answer)
        if self.outcome == "running":
            self.outcome = "user_done"
        return len(self.steps)

    async def _user_says(self, heard: str) -> str | None:
        """The user's next message; None when it has what it wanted."""
        if "user" not in self.session.role_engines:
            return str(self._script.pop(0)) if self._script else None
        self._user.append({"role": "user", "content": heard})
        step = await self.chat(self._user, role="user")
        self._user.append({"role": "assistant", "content": step.text})
        text = step.content.strip()
        return None if not text or self.chosen.done_word in text else text

    def metadata(self) -> dict[str, Any]:
        return {"outcome": self.outcome}
