"""Gymnasium's environments with discrete actions, as text.

The observation is the environment's text rendering (`ansi`) if it has one, else the observation's value.
`settings.actions` names the actions in order; for the toy-text environments they are named here. All other settings are
passed to `gymnasium.make`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from midstream.core.environments import Environment, Outcome
from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Message
from midstream.tasks.environments.episodes import Episodes
from midstream.tasks.taskset import TaskSet

ACTIONS = {
    "Blackjack": ("stick", "hit"),
    "CliffWalking": ("up", "right", "down", "left"),
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
}
"""Names of actions in the order of their numbers, from gymnasium's documentation."""
OBSERVATIONS = {"Blackjack": "(your sum, the dealer's card, whether you hold a usable ace)"}
_CONTROL = re.compile(r"\x1b\[[0-9;]*m")


def tasks(env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
    made = _Gymnasium(env, settings, 0)
    question = made.task
    made.env.close()
    return Episodes("gymnasium", env, settings, seed, lambda _: (question, None), by_seed=True)


def environment(env: str, settings: Mapping[str, Any], seed: int) -> Environment:
    return _Gymnasium(env, settings, seed)


class _Gymnasium:
    resume = "replay"

    def __init__(self, env: str, settings: Mapping[str, Any], seed: int) -> None:
        if ":" in env:
            raise ConfigError(f"'{env}' would import a module", "name an environment that gymnasium itself registers")
        given = dict(settings)
        named = given.pop("actions", None)
        self._seed = seed
        base = env.rpartition("-v")[0] or env
        try:
            spec = gymnasium.spec(env)
            renders = "ansi" in getattr(_class_of(spec), "metadata", {}).get("render_modes", ())
            self.env = gymnasium.make(env, **({"render_mode": "ansi"} if renders else {}), **given)
        except (gymnasium.error.Error, TypeError, ImportError) as error:
            raise TaskError(f"gymnasium makes no environment '{env}' with {given}: {error}") from None
        space = self.env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise TaskError(f"'{env}' takes actions of {space}", "only discrete actions can be named in text")
        numbers = tuple(str(space.start + number) for number in range(int(space.n)))
        self._actions: tuple[str, ...] = tuple(named or ACTIONS.get(base, numbers))
        if len(self._actions) != len(numbers):
            raise ConfigError(f"'{env}' has {len(numbers)} actions, and {len(self._actions)} are named", "see settings")
        self._start, self._renders = int(space.start), renders
        about = OBSERVATIONS.get(base, "")
        self.task = (
            f"You act in {base}. Each turn you are shown its state{' as ' + about if about else ''}. "
            f"Reply with one action: {', '.join(self._actions)}."
        )

    async def reset(self) -> Sequence[Message]:
        observation, _ = self.env.reset(seed=self._seed)
        return [{"role": "user", "content": f"{self.task}\n{self._shown(observation)}"}]

    async def act(self, action: str) -> Outcome:
        number = self._read(action)
        if number is None:
            return Outcome(observation=f"That is no action. Reply with one of: {', '.join(self._actions)}.", reward=0.0)
        observation, reward, terminated, truncated, _ = self.env.step(self._start + number)
        return Outcome(observation=self._shown(observation), reward=float(reward), done=terminated or truncated)

    async def close(self) -> None:
        self.env.close()

    def _read(self, action: str) -> int | None:
        """Return the number of the last action that the text names, or None."""
        names = "|".join(re.escape(name) for name in sorted(self._actions, key=len, reverse=True))
        found = re.findall(rf"(?<!\w)(?:{names})(?!\w)", action, re.IGNORECASE)
        lower = [name.lower() for name in self._actions]
        return lower.index(found[-1].lower()) if found else None

    def _shown(self, observation: Any) -> str:
        if not self._renders:
            return str(observation)
        # Brackets replace the colour that marks the agent's cell.
        text = re.sub(r"\x1b\[4[0-9]m(.*?)\x1b\[0m", r"[\1]", str(self.env.render()), flags=re.DOTALL)
        return _CONTROL.sub("", text).strip()


def _class_of(spec: Any) -> Any:
    entry = spec.entry_point
    return gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
