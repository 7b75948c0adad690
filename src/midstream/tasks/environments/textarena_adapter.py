"""TextArena's games for one player. All settings are passed to `textarena.make`.

Games that need the network or an opponent are refused with the reason when their tasks are created.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import textarena

from midstream.core.environments import Environment, Outcome
from midstream.core.errors import TaskError, nearest
from midstream.core.types import Message
from midstream.tasks.environments.episodes import Episodes
from midstream.tasks.taskset import TaskSet

_OWN = textarena.ObservationType.PLAYER_ACTION


def tasks(env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
    question = _TextArena(env, settings, 0).opening()
    return Episodes("textarena", env, settings, seed, lambda _: (question, None), by_seed=True)


def environment(env: str, settings: Mapping[str, Any], seed: int) -> Environment:
    return _TextArena(env, settings, seed)


class _TextArena:
    resume = "replay"

    def __init__(self, env: str, settings: Mapping[str, Any], seed: int) -> None:
        known = textarena.envs.registration.ENV_REGISTRY
        # The variant `-raw` shows each message once; others repeat the history, which is in the conversation already.
        raw = f"{env}-raw"
        if raw not in known:
            raise TaskError(
                f"TextArena has no game '{env}'", nearest(env, [name for name in known if "-raw" not in name])
            )
        self._name, self._seed = env, seed
        self._random = random.Random(seed)
        try:
            with _random_state(self._random):
                self._game: Any = textarena.make(raw, **settings)
        except Exception as error:  # a game may lack a word list, a key or a package
            raise TaskError(f"TextArena's game '{env}' cannot be made here: {str(error).strip()[:200]}") from None

    def opening(self) -> str:
        """Begin the game; returns the first observation."""
        try:
            with _random_state(self._random):
                self._game.reset(num_players=1, seed=self._seed)
        except Exception as error:
            raise TaskError(
                f"TextArena's game '{self._name}' does not start for one player: {str(error).strip()[:200]}"
            ) from None
        return self._new_messages()

    async def reset(self) -> Sequence[Message]:
        return [{"role": "user", "content": self.opening()}]

    async def act(self, action: str) -> Outcome:
        with _random_state(self._random):
            done, _ = self._game.step(action)
        if not done:
            return Outcome(observation=self._new_messages())
        rewards, facts = self._game.close()
        own = dict(facts.get(0, {})) if isinstance(facts, Mapping) else {}
        kept = {key: value for key, value in own.items() if isinstance(value, str | int | float | bool)}
        return Outcome(reward=float((rewards or {}).get(0, 0.0)), done=True, info=kept)

    async def close(self) -> None:
        pass

    def _new_messages(self) -> str:
        _, observation = self._game.get_observation()
        if isinstance(observation, str):
            return observation
        return "\n".join(text for _, text, kind in observation if kind is not _OWN).strip()


_lock = threading.Lock()


@contextmanager
def _random_state(own: random.Random) -> Iterator[None]:
    """Run a game with its own random state. Games draw from the module `random`, which is shared."""
    with _lock:
        outer = random.getstate()
        random.setstate(own.getstate())
        try:
            yield
        finally:
            own.setstate(random.getstate())
            random.setstate(outer)
