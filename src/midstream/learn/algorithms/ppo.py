"""PPO with a critic: generalised advantage estimation over the tokens that the policy sampled, and those alone."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from midstream.core.config import Config
from midstream.core.errors import TrainingError
from midstream.learn.algorithms.base import Aggregation, Algorithm, Reads
from midstream.learn.algorithms.outcome import Advantages, Groups, Outcome
from midstream.learn.algorithms.reinforce import whitened


class CriticConfig(Config):
    """Who says what a state is worth: a linear head on a model's last hidden states, 0 everywhere at the start."""

    model: str | None = None
    """A model of its own, by name or directory, tuned as `policy` is; not given, the head sits on the policy, and the
    critic's loss moves the policy's weights too."""
    roles: tuple[str, ...] = ()
    """Module roles with a head of their own; all others share one. A planner's state and a generator's, with equal
    hidden states, may be worth different rewards."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the heads."""
    model_lr: float = Field(default=1e-4, gt=0)
    """Learning rate of a model of its own."""
    coef: float = Field(default=0.1, ge=0)
    """Weight of the critic's loss beside the policy's where they share a model; 0 lets it train the head alone."""
    clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from what it was as the step began before its loss stops pulling (Schulman's PPO);
    None never stops it."""
    warmup: int = Field(default=0, ge=0)
    """First updates in which the head (and its model) learn, and the policy does not."""


class PPO(Algorithm):
    """GAE(gamma, lambda) (Schulman et al. 2016), as PPO has it: delta_t = r_t + gamma V_t+1 - V_t, A_t = delta_t +
    gamma lambda A_t+1. The t are the trainable tokens of a trajectory, one after another: a prompt, a tool's result or
    the words of another role take no time and have no value. A turn's reward is earned at its last token. Then whitened
    over the batch. The critic learns A + V, before whitening."""

    name: Literal["ppo"] = "ppo"
    """Proximal policy optimization, with a critic."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """gamma, by token."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """lambda: 1 trusts the rewards, 0 the critic."""
    whiten: bool = True
    """Give the batch's advantages mean 0 and deviation 1."""
    aggregation: Aggregation = "token_mean"
    """How token losses are averaged; the statistics are over tokens too."""
    critic: CriticConfig = CriticConfig()
    """The critic."""

    reads: ClassVar[frozenset[Reads]] = frozenset({"values"})

    def advantages(self, groups: Groups) -> Advantages:
        """As `Algorithm.advantages`, by token."""
        plain = [[self._gae(outcome) for outcome in group] for group in groups]
        return whitened(plain) if self.whiten else [[list(own) for own in group] for group in plain]

    def targets(self, groups: Groups) -> Advantages:
        """A + V, as `Algorithm.targets`."""
        return [
            [
                [
                    [advantage + value for advantage, value in zip(own, turn.reading.values, strict=True)]
                    for own, turn in zip(self._gae(outcome), outcome.turns, strict=True)
                ]
                for outcome in group
            ]
            for group in groups
        ]

    def metrics(self, groups: Groups) -> dict[str, float]:
        """`explained_variance` of what was earned, by what the critic expected: 1 - Var(target - V) / Var(target)."""
        outcomes = [outcome for group in groups for outcome in group]
        errors = np.array([a for outcome in outcomes for turn in self._gae(outcome) for a in turn])
        values = np.array([v for outcome in outcomes for turn in outcome.turns for v in turn.reading.values])
        spread = float(np.var(errors + values)) if len(values) else 0.0
        return {"explained_variance": 1 - float(np.var(errors)) / spread} if spread > 0 else {}

    def _gae(self, outcome: Outcome) -> list[list[float]]:
        found: list[list[float]] = []
        ahead, value_ahead = 0.0, 0.0
        for turn in reversed(outcome.turns):
            values = turn.reading.values
            if len(values) != turn.tokens:
                raise TrainingError(
                    f"the algorithm 'ppo' was given {len(values)} values for a turn of {turn.tokens} tokens",
                    "it needs a critic; algorithm.critic configures one",
                )
            own: list[float] = []
            for place in range(turn.tokens - 1, -1, -1):
                reward = turn.reward if place == turn.tokens - 1 else 0.0
                delta = reward + self.discount * value_ahead - values[place]
                ahead = delta + self.discount * self.gae_lambda * ahead
                value_ahead = values[place]
                own.append(ahead)
            found.append(own[::-1])
        return found[::-1]
