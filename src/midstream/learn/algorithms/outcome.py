"""What an advantage estimator sees of a trajectory, and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midstream.core.types import Step, Trajectory


@dataclass(frozen=True, slots=True)
class PolicyOutputs:
    """What models say of one trainable step as the weights are now, by response token. Empty is what was not asked for:
    an algorithm `reads` what it needs."""

    log_probs: Sequence[float] = ()
    """The policy's own."""
    entropy: Sequence[float] = ()
    reference: Sequence[float] = ()
    """Log-probabilities by the reference policy."""
    values: Sequence[float] = ()
    """What the critic expects to be earned from each token on."""


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """One trainable turn. `reward` is what was earned from it until the next one; all of them, and what was earned
    before the first, add up to the trajectory's reward. `state` is equal for turns that began in the same state."""

    tokens: int
    role: str = ""
    reward: float = 0.0
    state: object = None
    reading: PolicyOutputs = PolicyOutputs()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trajectory: its reward, that reward by component, its trainable turns in order, what a greedy attempt at the
    same task earned, for an algorithm that asks for one, and what the algorithm remembers of earlier steps."""

    reward: float
    turns: tuple[TurnOutcome, ...] = ()
    components: Mapping[str, float | None] = field(default_factory=dict)
    greedy: float | None = None
    memory: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Trainable tokens."""
        return sum(turn.tokens for turn in self.turns)


Credit = float | Sequence[float]
"""The advantage of a turn: one number for all its tokens, or one a token."""
Groups = Sequence[Sequence[Outcome]]
Advantages = list[list[list[Credit]]]
"""By group, trajectory, turn."""


TurnKey = tuple[str, int]
"""A step: the uid of its trajectory, and its index there."""


def outcome_of(
    trajectory: Trajectory,
    trainable: Sequence[Step],
    *,
    greedy: float | None = None,
    readings: Mapping[TurnKey, PolicyOutputs] | None = None,
    memory: Mapping[str, float] | None = None,
) -> Outcome:
    """`trajectory` as an estimator sees it; `trainable` are its steps that carry loss, in order. Two turns began in the
    same state when the flow says so (`metadata["state"]` of the step), else when their prompts are the same tokens."""
    begins = [step.step_index for step in trainable]
    earned = [0.0] * len(trainable)
    for step in trajectory.steps:
        place = sum(begin <= step.step_index for begin in begins) - 1
        if place >= 0 and step.reward is not None:
            earned[place] += step.reward
    return Outcome(
        float(trajectory.reward or 0.0),
        tuple(
            TurnOutcome(
                len(step.response_ids),
                step.role,
                reward,
                _state(step),
                (readings or {}).get((trajectory.uid, step.step_index), PolicyOutputs()),
            )
            for step, reward in zip(trainable, earned, strict=True)
        ),
        dict(trajectory.rewards),
        greedy,
        memory or {},
    )


def _state(step: Step) -> object:
    """Equal, and hashable, where two steps began in the same state."""
    if "state" not in step.metadata:
        return step.prompt_ids
    return json.dumps(step.metadata["state"], sort_keys=True, default=str)


def to_every_turn(groups: Groups, values: Sequence[Sequence[float]]) -> Advantages:
    """Each trajectory's value as the advantage of each of its turns."""
    return [
        [[value] * len(outcome.turns) for outcome, value in zip(group, own, strict=True)]
        for group, own in zip(groups, values, strict=True)
    ]


def returns(outcome: Outcome, discount: float) -> list[float]:
    """What is still to be earned from each turn on: G_t = r_t + discount G_{t+1}."""
    found: list[float] = []
    ahead = 0.0
    for turn in reversed(outcome.turns):
        ahead = turn.reward + discount * ahead
        found.append(ahead)
    return found[::-1]
