"""From groups of trajectories to what the learner computes: turns with an advantage and a weight per token.

Groups without variance and trajectories that are masked keep their place in every denominator but cost no computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from midstream.core.errors import TrainingError
from midstream.core.types import Status, Step, Trajectory
from midstream.learn.algorithms.base import Aggregation
from midstream.learn.log_probs import TokenSequence

Advantages = Callable[[Sequence[Sequence[float]]], list[list[float]]]


@dataclass(frozen=True, slots=True)
class LearningTurn:
    """One trainable step: its tokens, the log-probabilities they were sampled with, its advantage, and each token's
    weight."""

    sequence: TokenSequence
    old_log_probs: tuple[float, ...]
    advantage: float
    weight: float
    role: str
    group: str


@dataclass(frozen=True, slots=True)
class LearningBatch:
    """`turns` are those that carry gradient; `counts` says what became of everything else."""

    turns: list[LearningTurn]
    counts: dict[str, float] = field(default_factory=dict)

    def parts(self, n: int) -> list[LearningBatch]:
        """`n` batches of neighbouring groups for separate updates, each with weights of its own mean."""
        if n == 1:
            return [self]
        groups = list(dict.fromkeys(turn.group for turn in self.turns))
        size = -(-len(groups) // n) or 1
        parts: list[LearningBatch] = []
        for start in range(0, len(groups), size):
            chosen = set(groups[start : start + size])
            turns = [t for t in self.turns if t.group in chosen]
            share = _mass(turns) / _mass(self.turns)
            scaled = [
                LearningTurn(t.sequence, t.old_log_probs, t.advantage, t.weight / share, t.role, t.group) for t in turns
            ]
            parts.append(LearningBatch(scaled, self.counts))
        return parts


def _mass(turns: Sequence[LearningTurn]) -> float:
    return sum(turn.weight * len(turn.old_log_probs) for turn in turns)


def make_batch(
    groups: Sequence[Sequence[Trajectory]],
    advantages: Advantages,
    aggregation: Aggregation,
    *,
    failed: str,
    keep_zero: bool = False,
) -> LearningBatch:
    """Advantages by trajectory, weights by token.

    `failed` is the rule `rollout.failed`. `keep_zero` keeps turns of zero advantage: a KL term or entropy bonus acts on
    them too. Raises `TrainingError` for a reward that is not finite."""
    scored = [
        [t for t in group if t.reward is not None and (t.status is Status.COMPLETED or failed == "score")]
        for group in groups
    ]
    for group in scored:
        for trajectory in group:
            if not math.isfinite(trajectory.reward or 0.0):
                raise TrainingError(
                    f"the reward of trajectory '{trajectory.uid}' is {trajectory.reward}",
                    f"its components: {dict(trajectory.rewards)}",
                )
    live = [group for group in scored if len(group) > 0]
    by_group = advantages([[float(t.reward or 0.0) for t in group] for group in live])
    counted = [t for group in groups for t in group] if failed == "mask" else [t for group in live for t in group]
    weigh = _weights(counted, aggregation)
    turns: list[LearningTurn] = []
    for group, values in zip(live, by_group, strict=True):
        for trajectory, advantage in zip(group, values, strict=True):
            if advantage == 0 and not keep_zero:
                continue
            steps = _trainable(trajectory)
            for step in steps:
                sequence = TokenSequence(step.prompt_ids, step.response_ids, step.temperature)
                weight = weigh(trajectory, step, len(steps))
                turns.append(
                    LearningTurn(
                        sequence, step.rollout_log_probs or (), advantage, weight, step.role, trajectory.prompt_uid
                    )
                )
    flat = [sum(1 for v in values if v != 0) == 0 for values in by_group]
    counts = {
        "groups": float(len(groups)),
        "zero_variance_groups": float(sum(flat)),
        "empty_groups": float(len(groups) - len(live)),
        "failed_trajectories": float(sum(t.status is not Status.COMPLETED for group in groups for t in group)),
        "untrainable_trajectories": float(sum(not _trainable(t) for t in counted)),
    }
    return LearningBatch(turns, counts)


def _trainable(trajectory: Trajectory) -> list[Step]:
    return [step for step in trajectory.steps if step.trainable and step.response_ids and step.rollout_log_probs]


def _weights(trajectories: Sequence[Trajectory], aggregation: Aggregation) -> Callable[[Trajectory, Step, int], float]:
    """The weight of one token of a step, such that all weights of the batch sum to 1."""
    trainable = [steps for t in trajectories if (steps := _trainable(t))]
    n_trajectories = len(trainable)
    n_turns = sum(len(steps) for steps in trainable)
    n_tokens = sum(len(step.response_ids) for steps in trainable for step in steps)
    if aggregation == "token_mean":
        return lambda trajectory, step, turns: 1 / n_tokens
    if aggregation == "sequence_mean":
        return lambda trajectory, step, turns: 1 / (n_turns * len(step.response_ids))
    return lambda trajectory, step, turns: 1 / (n_trajectories * turns * len(step.response_ids))
