"""PPO with a critic: generalized advantage estimation over the tokens sampled by the policy."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from midstream.core.errors import TrainingError
from midstream.learn.algorithms.base import Aggregation, Algorithm, OutputKind
from midstream.learn.algorithms.critic import CriticConfig
from midstream.learn.algorithms.outcome import Advantages, Groups, Outcome
from midstream.learn.algorithms.reinforce import whitened


class PPO(Algorithm):
    """GAE(gamma, lambda) (Schulman et al. 2016), as in PPO: delta_t = r_t + gamma V_t+1 - V_t, A_t = delta_t + gamma
    lambda A_t+1. The index t runs over the trainable tokens of a trajectory; prompts, tool results and tokens of other
    roles are skipped and have no value. A turn's reward is earned at its last token. Advantages are then whitened over
    the batch. The critic learns A + V, before whitening."""

    name: Literal["ppo"] = "ppo"
    """Proximal policy optimization, with a critic."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """gamma, per token."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """lambda: 1 relies on rewards only, 0 on the critic."""
    whiten: bool = True
    """Normalize the batch's advantages to mean 0 and standard deviation 1."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged; statistics are over tokens too."""
    critic: CriticConfig = CriticConfig()
    """The critic."""

    required_outputs: ClassVar[frozenset[OutputKind]] = frozenset({"values"})

    @property
    def required_critic(self) -> CriticConfig:
        """As `Algorithm.required_critic`."""
        return self.critic

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`, by token."""
        plain = [[self._gae(outcome) for outcome in group] for group in groups]
        return whitened(plain) if self.whiten else [[list(own) for own in group] for group in plain]

    def targets(self, groups: Groups) -> Advantages:
        """Return A + V, as `Algorithm.targets`."""
        return [
            [
                [
                    [advantage + value for advantage, value in zip(own, turn.outputs.values, strict=True)]
                    for own, turn in zip(self._gae(outcome), outcome.turns, strict=True)
                ]
                for outcome in group
            ]
            for group in groups
        ]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """Return `explained_variance` = 1 - Var(target - V) / Var(target)."""
        outcomes = [outcome for group in groups for outcome in group]
        errors = np.array([a for outcome in outcomes for turn in self._gae(outcome) for a in turn])
        values = np.array([v for outcome in outcomes for turn in outcome.turns for v in turn.outputs.values])
        spread = float(np.var(errors + values)) if len(values) else 0.0
        return {"explained_variance": 1 - float(np.var(errors)) / spread} if spread > 0 else {}

    def _gae(self, outcome: Outcome) -> list[list[float]]:
        result: list[list[float]] = []
        advantage, next_value = 0.0, 0.0
        for turn in reversed(outcome.turns):
            values = turn.outputs.values
            if len(values) != turn.tokens:
                raise TrainingError(
                    f"the algorithm 'ppo' was given {len(values)} values for a turn of {turn.tokens} tokens",
                    "it needs a critic; algorithm.critic configures one",
                )
            own: list[float] = []
            for index in range(turn.tokens - 1, -1, -1):
                reward = turn.reward if index == turn.tokens - 1 else 0.0
                delta = reward + self.discount * next_value - values[index]
                advantage = delta + self.discount * self.gae_lambda * advantage
                next_value = values[index]
                own.append(advantage)
            result.append(own[::-1])
        return result[::-1]
