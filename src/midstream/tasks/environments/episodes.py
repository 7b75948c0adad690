"""Task sets of environments whose episodes are determined by a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from midstream.core.errors import TaskError
from midstream.core.seeds import derive_seed
from midstream.core.types import Task
from midstream.tasks.taskset import TaskSet, known_split, split_of

MOST_TRIES = 2_000
"""Seeds tried for one task before its split counts as empty."""

Describe = Callable[[int], tuple[str, Any]]
"""Returns question and answer of the episode with a seed. The answer is None if there is none."""


class Episodes(TaskSet):
    """An unbounded task set: one episode per task, each with its own seed.

    A hash of the question determines the split, so an opening position that occurs in `test` never occurs in `train`.
    With `by_seed` the seed determines it, for environments whose episodes all begin with the same text."""

    def __init__(
        self,
        kind: str,
        env: str,
        settings: Mapping[str, Any],
        seed: int,
        describe: Describe,
        *,
        by_seed: bool = False,
    ) -> None:
        self.name, self.kinds = f"{kind}:{env}", (env,)
        self._kind, self._env, self._settings, self._seed = kind, env, dict(settings), seed
        self._describe, self._by_seed = describe, by_seed

    def size(self, split: str) -> int | None:
        known_split(split)
        return None

    def get(self, split: str, index: int) -> Task:
        known_split(split)
        for attempt in range(MOST_TRIES):
            # Held-out tasks do not depend on the seed of a run.
            own = self._seed if split == "train" else 0
            seed = derive_seed("environment", self.name, own, split, index, attempt) % 2**31
            if self._by_seed and split_of(f"{self.name}:{seed}") != split:
                continue
            question, answer = self._describe(seed)
            if self._by_seed or split_of(question) == split:
                named = {"type": self._kind, "env": self._env, "settings": self._settings, "seed": seed}
                return Task(
                    id=f"{self.name}:{split}:{seed}",
                    prompt=question,
                    answer=answer,
                    kind=self._env,
                    split=split,
                    metadata={"environment": named},
                )
        raise TaskError(
            f"'{self.name}' has no task in the split '{split}': none of {MOST_TRIES} seeds gave one",
            "its episodes begin alike; choose settings that vary more",
        )
