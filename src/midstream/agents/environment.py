"""`environment_agent`: plays the environment of a task; each reply of the model is an action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.episode import Episode
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.errors import ConfigError
from midstream.core.sampling import SamplingParams
from midstream.core.text import after_thinking
from midstream.core.types import Message
from midstream.tasks.environments import make_environment


class EnvironmentSettings(Config):
    """Settings of `environment_agent`."""

    system: str | None = None
    """System message before the environment's messages."""
    max_turns: int = Field(default=20, ge=1)
    """Maximum actions of an episode. After the last one the episode ends with its rewards so far."""


@register("environment_agent")
class EnvironmentAgentFlow(AgentFlowBase):
    """Chats with an environment until the episode ends. The last reply is the answer; the reward component
    `environment` is the environment's reward for each action."""

    settings = EnvironmentSettings

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        self._rewards: list[float | None] = []
        self._done = False
        self._info: dict[str, Any] = {}

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        settings = self.config
        assert isinstance(settings, EnvironmentSettings)
        named = self.task.metadata.get("environment")
        if not isinstance(named, dict):
            raise ConfigError(
                f"the task '{self.task.id}' has no environment", "use environment_agent with tasks of an environment"
            )
        environment = make_environment(named)
        self.session.resources.push_async_callback(environment.close)
        messages: list[Message] = [{"role": "system", "content": settings.system}] if settings.system else []
        episode = Episode(environment, self.session.actions, self.session.recorder.replayed is not None)
        messages += await episode.reset()
        while not self._done and self.turns < settings.max_turns:
            self.turns += 1
            reply = await self.chat(messages, sampling_params=sampling_params)
            self.answer = reply.text
            outcome = await episode.act(after_thinking(reply.text).strip())
            self._rewards.append(outcome.reward)
            self._done = outcome.done
            self._info |= outcome.info
            messages += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": outcome.observation},
            ]
        return len(self.steps)

    def metadata(self) -> dict[str, Any]:
        if not self.turns:
            return {}
        return {"environment": {"rewards": self._rewards, "done": self._done, **self._info}}
