"""Input and output types of advantage estimators."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midstream.core.types import Step, Trajectory


@dataclass(frozen=True, slots=True)
class PolicyOutputs:
    """Per-token outputs for one trainable step under the current weights. Fields not requested are empty: an algorithm
    lists what it needs in `required_outputs`."""

    log_probs: Sequence[float] = ()
    """Log-probabilities under the policy."""
    entropy: Sequence[float] = ()
    reference: Sequence[float] = ()
    """Log-probabilities under the reference policy."""
    values: Sequence[float] = ()
    """The critic's values of the state before each token."""


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """One trainable turn.

    `reward` sums the rewards from this turn until the next trainable one; together with rewards before the first turn,
    they add up to the trajectory's reward. `state` is equal for turns that began in the same state.
    """

    tokens: int
    role: str = ""
    reward: float = 0.0
    state: object = None
    outputs: PolicyOutputs = PolicyOutputs()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trajectory: total reward, reward by component, trainable turns in order, the reward of a greedy attempt at
    the same task when the algorithm needs one, the algorithm's state from earlier training steps, and the reward of
    re-runs by the role that was a no-op."""

    reward: float
    turns: tuple[TurnOutcome, ...] = ()
    components: Mapping[str, float | None] = field(default_factory=dict)
    greedy: float | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    without: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of trainable tokens."""
        return sum(turn.tokens for turn in self.turns)


REWARD_WITHOUT = "reward_without"
"""Metadata key of a trajectory: the rewards of its re-runs, by the role that was a no-op."""
Credit = float | Sequence[float]
"""The advantage of a turn: one number for all its tokens, or one per token."""
Groups = Sequence[Sequence[Outcome]]
Advantages = list[list[list[Credit]]]
"""Advantages by group, trajectory, turn."""


TurnKey = tuple[str, int]
"""Key of a step: the uid of its trajectory, and its index there."""


def outcome_of(
    trajectory: Trajectory,
    trainable: Sequence[Step],
    *,
    greedy: float | None = None,
    outputs: Mapping[TurnKey, PolicyOutputs] | None = None,
    memory: Mapping[str, float] | None = None,
) -> Outcome:
    """Convert `trajectory` for an estimator; `trainable` holds its steps with loss, in order.

    Two turns began in the same state when the flow set equal `metadata["state"]` on the steps; without it, when their
    prompts are the same tokens.
    """
    begins = [step.step_index for step in trainable]
    earned = [0.0] * len(trainable)
    for step in trajectory.steps:
        turn = sum(begin <= step.step_index for begin in begins) - 1
        if turn >= 0 and step.reward is not None:
            earned[turn] += step.reward
    return Outcome(
        float(trajectory.reward or 0.0),
        tuple(
            TurnOutcome(
                len(step.response_ids),
                step.role,
                reward,
                _state(step),
                (outputs or {}).get((trajectory.uid, step.step_index), PolicyOutputs()),
            )
            for step, reward in zip(trainable, earned, strict=True)
        ),
        dict(trajectory.rewards),
        greedy,
        memory or {},
        trajectory.metadata.get(REWARD_WITHOUT, {}),
    )


def _state(step: Step) -> object:
    """Return a hashable key of the state in which a step began."""
    if "state" not in step.metadata:
        return step.prompt_ids
    return json.dumps(step.metadata["state"], sort_keys=True, default=str)


def to_every_turn(groups: Groups, values: Sequence[Sequence[float]]) -> Advantages:
    """Assign each trajectory's value to all of its turns."""
    return [
        [[value] * len(outcome.turns) for outcome, value in zip(group, own, strict=True)]
        for group, own in zip(groups, values, strict=True)
    ]


def returns(outcome: Outcome, discount: float) -> list[float]:
    """Return the discounted return of each turn: G_t = r_t + discount G_{t+1}."""
    result: list[float] = []
    return_ = 0.0
    for turn in reversed(outcome.turns):
        return_ = turn.reward + discount * return_
        result.append(return_)
    return result[::-1]
