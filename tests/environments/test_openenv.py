"""An OpenEnv server, from its package, on loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openenv.core", reason="make test-openenv installs it")

from openenv.core import GenericEnvClient
from openenv.core import env_server as openenv
from websockets.exceptions import ConnectionClosedError

from midstream.core.environments import Outcome
from midstream.core.errors import ConfigError, ServiceError, TaskError
from midstream.tasks.environments import environment_tasks, make_environment

pytestmark = pytest.mark.environments


class Guess(openenv.Action):
    number: int


class Hint(openenv.Observation):
    hint: str


class HigherOrLower(openenv.Environment):
    """Guess a number from 0 to 9; a right guess earns 1."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        self.number = (seed or 0) % 10 + kwargs.get("above", 0)
        return Hint(hint="Guess.")

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        if action.number == 666:
            raise RuntimeError("the guesser broke")
        done = action.number == self.number
        hint = "right" if done else "higher" if action.number < self.number else "lower"
        return Hint(hint=hint, reward=float(done), done=done)

    @property
    def state(self) -> Any:
        return openenv.State()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = openenv.create_fastapi_app(HigherOrLower, Guess, Hint, max_concurrent_envs=8)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def played(url: str, settings: dict[str, Any], *actions: str) -> tuple[str, list[Outcome]]:
    """The opening of an episode whose number is 4, and the outcomes of `actions`."""
    environment = make_environment({"type": "openenv", "env": url, "settings": settings, "seed": 4})

    async def play() -> tuple[str, list[Outcome]]:
        (message,) = await environment.reset()
        try:
            return message["content"], [await environment.act(action) for action in actions]
        finally:
            await environment.close()

    return asyncio.run(play())


def test_an_episode_is_played(url: str) -> None:
    text, outcomes = played(url, {"action": "number"}, "2", "7", "4")
    assert text.endswith("Reply with your next action.\nGuess.")
    assert [outcome.observation for outcome in outcomes] == ["higher", "lower", "right"]
    assert [outcome.reward for outcome in outcomes] == [0, 0, 1] and outcomes[-1].done


def test_an_action_may_be_json(url: str) -> None:
    text, outcomes = played(url, {"prompt": "Guess it.", "reset": {"above": 10}}, 'I say {"number": 14}.')
    assert text == "Guess it.\nGuess." and outcomes[0].reward == 1


def test_an_action_that_the_server_does_not_take_costs_a_turn_only(url: str) -> None:
    _, outcomes = played(url, {}, "four", '{"guess": 4}', '{"number": 4}')
    assert [outcome.reward for outcome in outcomes] == [0, 0, 1]
    assert outcomes[0].observation == "That is no action. Write it as a JSON object."
    assert outcomes[1].observation.startswith("That is no action: ")


def test_a_server_that_fails_is_infrastructure(url: str) -> None:
    with pytest.raises(ServiceError, match=r"failed: Server error: .*the guesser broke"):
        played(url, {"action": "number"}, "666")
    with pytest.raises(ServiceError, match="does not answer"):
        played("http://127.0.0.1:9", {"connect_timeout_s": 2.0})


def test_a_server_that_hangs_up_is_infrastructure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def closed(self: Any, action: Any) -> Any:
        raise ConnectionClosedError(None, None)

    monkeypatch.setattr(GenericEnvClient, "step", closed)
    with pytest.raises(ServiceError, match="does not answer"):
        played(url, {"action": "number"}, "4")


def test_tasks_are_episodes(url: str) -> None:
    tasks = environment_tasks("openenv", url, {"action": "number"}, 0)
    seeds = {tasks.get("train", index).metadata["environment"]["seed"] for index in range(20)}
    assert len(seeds) == 20 and not seeds & {tasks.get("test", n).metadata["environment"]["seed"] for n in range(9)}
    with pytest.raises(TaskError, match="no address of an OpenEnv server"):
        environment_tasks("openenv", "echo-env", {}, 0)
    with pytest.raises(ConfigError, match="did you mean 'action'"):
        environment_tasks("openenv", url, {"actions": "number"}, 0)
