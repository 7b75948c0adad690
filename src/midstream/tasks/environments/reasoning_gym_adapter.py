"""Generators of reasoning-gym: one question per episode, graded by the generator. Settings are passed to its config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import extract_answer

from midstream.core.environments import Environment, Outcome
from midstream.core.errors import TaskError, nearest
from midstream.core.types import Message
from midstream.tasks.environments.episodes import Episodes
from midstream.tasks.taskset import TaskSet


def tasks(env: str, settings: Mapping[str, Any], seed: int) -> TaskSet:
    def describe(own: int) -> tuple[str, Any]:
        entry = _entry(env, settings, own)[1]
        return entry["question"], entry["answer"]

    return Episodes("reasoning_gym", env, settings, seed, describe)


def environment(env: str, settings: Mapping[str, Any], seed: int) -> Environment:
    return _Question(env, settings, seed)


def _entry(env: str, settings: Mapping[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    if env not in DATASETS:
        raise TaskError(f"reasoning-gym has no generator '{env}'", nearest(env, DATASETS))
    try:
        dataset = reasoning_gym.create_dataset(env, **{"size": 1, **settings, "seed": seed})
        return dataset, dataset[0]
    except (TypeError, ValueError, AssertionError) as error:
        raise TaskError(f"reasoning-gym's '{env}' with {json.dumps(dict(settings), default=str)}: {error}") from None


class _Question:
    """Ends with the first reply; its reward is the generator's score, 0 to 1."""

    resume = "replay"

    def __init__(self, env: str, settings: Mapping[str, Any], seed: int) -> None:
        self._dataset, self._entry = _entry(env, settings, seed)

    async def reset(self) -> Sequence[Message]:
        return [{"role": "user", "content": str(self._entry["question"])}]

    async def act(self, action: str) -> Outcome:
        answer = extract_answer(action) or action.strip()
        return Outcome(reward=float(self._dataset.score_answer(answer, self._entry)), done=True)

    async def close(self) -> None:
        pass
