"""Environments of an OpenEnv server, over its WebSocket. `env` is the server's address.

`settings.action` names the field of an action that the reply fills; without it, the reply must be the action as a JSON
object. `settings.observation` names the fields to show, by default all except reward, done and metadata.
`settings.prompt` is the instruction for the agent; `settings.reset` has further arguments of `reset`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openenv.core import GenericEnvClient
from pydantic import Field
from websockets.exceptions import ConnectionClosed

from midstream.core.config import Config, parse_config
from midstream.core.environments import Environment, Outcome
from midstream.core.errors import ServiceError, TaskError
from midstream.core.types import Message
from midstream.tasks.environments.episodes import Episodes
from midstream.tasks.taskset import TaskSet

_PROMPT = "You act in an environment. Each turn you are shown an observation. Reply with your next action."
_JSON = "Write it as a JSON object."
_OWN = ("reward", "done", "metadata")


class OpenEnvSettings(Config):
    """Settings of a source of type `openenv`."""

    prompt: str | None = None
    action: str | None = None
    observation: tuple[str, ...] = ()
    reset: dict[str, Any] = Field(default_factory=dict)
    connect_timeout_s: float = Field(default=10.0, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)

    @property
    def question(self) -> str:
        """Return the agent's instruction."""
        return self.prompt or (_PROMPT if self.action else f"{_PROMPT} {_JSON}")


def tasks(env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
    read = _read(env, settings)
    return Episodes("openenv", env, settings, seed, lambda _: (read.question, None), by_seed=True)


def environment(env: str, settings: Mapping[str, Any], seed: int) -> Environment:
    return _OpenEnv(env, _read(env, settings), seed)


def _read(env: str, settings: Mapping[str, Any]) -> OpenEnvSettings:
    if not env.startswith(("http://", "https://", "ws://", "wss://")):
        raise TaskError(f"'{env}' is no address of an OpenEnv server", "for example http://127.0.0.1:8000")
    return parse_config(OpenEnvSettings, dict(settings), "settings of an openenv source")


class _OpenEnv:
    def __init__(self, url: str, settings: OpenEnvSettings, seed: int) -> None:
        self._url, self._settings, self._seed = url, settings, seed
        self._client: Any = GenericEnvClient(
            base_url=url,
            mode="simulation",
            connect_timeout_s=settings.connect_timeout_s,
            message_timeout_s=settings.timeout_s,
        )

    async def reset(self) -> Sequence[Message]:
        try:
            result = await self._asked(self._client.reset(seed=self._seed, **self._settings.reset))
        except _InvalidAction as error:
            raise TaskError(f"the OpenEnv server at {self._url} refuses to start an episode: {error}") from None
        return [{"role": "user", "content": f"{self._settings.question}\n{self._shown(result.observation)}"}]

    async def act(self, action: str) -> Outcome:
        data: Any = {self._settings.action: action} if self._settings.action else _json(action)
        if not isinstance(data, dict):
            return Outcome(observation=f"That is no action. {_JSON}", reward=0.0)
        try:
            result = await self._asked(self._client.step(data))
        except _InvalidAction as error:
            return Outcome(observation=f"That is no action: {error}", reward=0.0)
        reward = None if result.reward is None else float(result.reward)
        return Outcome(observation=self._shown(result.observation), reward=reward, done=bool(result.done))

    async def close(self) -> None:
        await self._client.close()

    async def _asked(self, answer: Any) -> Any:
        """Raise `_InvalidAction` for refused data, and `ServiceError` if the server is unreachable or fails."""
        try:
            return await answer
        except (OSError, TimeoutError, ConnectionClosed) as error:
            raise ServiceError(f"the OpenEnv server at {self._url} does not answer: {error}") from None
        except RuntimeError as error:
            if "VALIDATION_ERROR" in str(error):
                raise _InvalidAction(str(error).removeprefix("Server error: ")[:500]) from None
            raise ServiceError(f"the OpenEnv server at {self._url} failed: {error}") from None

    def _shown(self, observation: Any) -> str:
        if not isinstance(observation, Mapping):
            return str(observation)
        names = self._settings.observation or [name for name in observation if name not in _OWN]
        shown = {name: observation.get(name) for name in names}
        if len(shown) == 1:
            (value,) = shown.values()
            if isinstance(value, str):
                return value
        return json.dumps(shown, ensure_ascii=False)


class _InvalidAction(Exception):
    """The server refused an action or the arguments of `reset`."""


def _json(text: str) -> Any:
    start, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
