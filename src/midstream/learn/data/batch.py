"""Converts groups of trajectories into learning batches: turns with an advantage and a weight per token.

Zero-variance groups and masked trajectories count in every denominator but cost no computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from midstream.core.errors import TrainingError
from midstream.core.failures import Failure, failure_of
from midstream.core.types import FinishReason, Status, Step, Trajectory
from midstream.learn.algorithms.base import Algorithm
from midstream.learn.algorithms.outcome import Credit, PolicyOutputs, TurnKey, outcome_of
from midstream.learn.data.altered_sampling import alterations, shares
from midstream.learn.model.log_probs import TokenSequence


@dataclass(frozen=True, slots=True)
class LearningTurn:
    """One trainable step: tokens, sampling log-probabilities, per-token advantages, and one loss weight for all
    tokens."""

    sequence: TokenSequence
    old_log_probs: tuple[float, ...]
    advantages: tuple[float, ...]
    weight: float
    role: str
    group: str
    key: TurnKey = ("", 0)
    version: int = 0
    """Policy version that sampled the turn."""
    scale: tuple[float, ...] = ()
    """Per-token factor of the policy loss; empty means 1."""
    values: tuple[float, ...] = ()
    """Critic values of each token at the start of the training step; empty without a critic."""
    targets: tuple[float, ...] = ()
    """Value targets of the critic for each token; empty without a critic."""


@dataclass(frozen=True, slots=True)
class LearningBatch:
    """Turns that carry gradient. `counts` holds statistics on everything else."""

    turns: list[LearningTurn]
    counts: dict[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    """State of the algorithm after this batch."""
    by_turn: bool = False
    """Whether the denominator counts turns instead of tokens."""

    def minibatches(self, n: int) -> list[LearningBatch]:
        """Split into at most `n` minibatches of neighbouring groups, each weighted by its own mean. Returns fewer when
        there are fewer groups."""
        if n == 1:
            return [self]
        groups = list(dict.fromkeys(turn.group for turn in self.turns))
        n = min(n, len(groups))
        cuts = [round(len(groups) * cut / n) for cut in range(n + 1)] if n else [0]
        minibatches: list[LearningBatch] = []
        for start, stop in pairwise(cuts):
            chosen = set(groups[start:stop])
            turns = [t for t in self.turns if t.group in chosen]
            share = self._mass(turns) / self._mass(self.turns)
            minibatches.append(replace(self, turns=[replace(turn, weight=turn.weight / share) for turn in turns]))
        return minibatches

    def since(self, version: int) -> LearningBatch:
        """Drop turns sampled by policies older than `version`. Weights do not change, so dropped turns still count in
        the denominators."""
        return replace(self, turns=[turn for turn in self.turns if turn.version >= version])

    def _mass(self, turns: Sequence[LearningTurn]) -> float:
        return sum(turn.weight * (1 if self.by_turn else len(turn.old_log_probs)) for turn in turns)


def make_batch(
    groups: Sequence[Sequence[Trajectory]],
    algorithm: Algorithm,
    *,
    failed: str,
    truncated: str = "keep",
    altered: str = "keep",
    keep_zero: bool = False,
    greedy: Mapping[str, float] | None = None,
    outputs: Mapping[TurnKey, PolicyOutputs] | None = None,
    memory: Mapping[str, float] | None = None,
) -> LearningBatch:
    """Compute advantages and weights with `algorithm`.

    `failed`, `truncated` and `altered` are the rules `rollout.failed`, `rollout.truncated` and
    `rollout.altered_sampling`. `keep_zero` keeps turns with zero advantage, because a KL term or an entropy bonus acts
    on them too. `greedy`, `outputs` and `memory` are inputs of some estimators: see `Outcome`. Raises `TrainingError`
    for a reward, advantage or log-probability that is not finite.
    """
    if truncated == "drop":
        groups = [[t for t in group if not _is_truncated(t)] for group in groups]
    scored = [[t for t in group if is_scored(t, failed, truncated)] for group in groups]
    for trajectory in (t for group in scored for t in group):
        finite_reward(trajectory)
    check_log_probs(t for group in groups for t in group)
    nonempty = [group for group in scored if len(group) > 0]
    outcomes = [
        [
            outcome_of(t, trainable_steps(t), greedy=(greedy or {}).get(t.prompt_uid), outputs=outputs, memory=memory)
            for t in group
        ]
        for group in nonempty
    ]
    advantages_by_group = algorithm.credited(outcomes)
    targets_by_group = algorithm.targets(outcomes) or [[[()] * len(o.turns) for o in group] for group in outcomes]
    counted = [t for group in groups for t in group] if failed == "mask" else [t for group in nonempty for t in group]
    token_weight = _weights(counted, algorithm)
    turns: list[LearningTurn] = []
    zero_variance: list[bool] = []
    for group, group_credits, group_targets in zip(nonempty, advantages_by_group, targets_by_group, strict=True):
        zero_variance.append(not any(_is_nonzero(credit) for credits in group_credits for credit in credits))
        for trajectory, credits, targets in zip(group, group_credits, group_targets, strict=True):
            steps = trainable_steps(trajectory)
            for step, credit, target in zip(steps, credits, targets, strict=True):
                advantages = _finite(_by_token(credit, len(step.response_ids)), trajectory)
                if truncated == "mask" and _is_truncated(trajectory):
                    continue
                if altered == "mask" and alterations(step):
                    continue
                if keep_zero or any(advantages):
                    key = (trajectory.uid, step.step_index)
                    values = (outputs or {}).get(key, PolicyOutputs()).values
                    turns.append(
                        LearningTurn(
                            TokenSequence.of(step),
                            tuple(step.rollout_log_probs or ()),
                            advantages,
                            token_weight(trajectory, step, len(steps)),
                            step.role,
                            trajectory.prompt_uid,
                            key,
                            step.policy_version,
                            values=tuple(values),
                            targets=tuple(target) if isinstance(target, Sequence) else (),
                        )
                    )
    counts = {
        "groups": float(len(groups)),
        "zero_variance_groups": float(sum(zero_variance)),
        "empty_groups": float(len(groups) - len(nonempty)),
        "failed_trajectories": float(sum(t.status is not Status.COMPLETED for group in groups for t in group)),
        "untrainable_trajectories": float(sum(not trainable_steps(t) for t in counted)),
        **shares(step for group in nonempty for t in group for step in trainable_steps(t)),
        **algorithm.metrics(outcomes),
    }
    new_memory = algorithm.remembered(outcomes) if outcomes else dict(memory or {})
    return LearningBatch(
        turns, counts, new_memory, by_turn=algorithm.aggregation in ("sequence_sum", "constant_length")
    )


def trainable_steps(trajectory: Trajectory) -> list[Step]:
    """Return the steps whose tokens carry loss."""
    return [step for step in trajectory.steps if step.trainable and step.response_ids and step.rollout_log_probs]


def is_scored(trajectory: Trajectory, failed: str, truncated: str) -> bool:
    """Return whether a trajectory enters its group's statistics, given the rules `rollout.failed` and
    `rollout.truncated`."""
    if truncated == "drop" and _is_truncated(trajectory):
        return False
    if failure_of(trajectory) not in (None, Failure.AGENT):
        return False  # an outage or a broken reward component says nothing about the policy
    return trajectory.reward is not None and (trajectory.status is Status.COMPLETED or failed == "score")


def finite_reward(trajectory: Trajectory) -> float:
    """Return the reward of a scored trajectory. Raises `TrainingError` when it is not finite."""
    if trajectory.reward is None or not math.isfinite(trajectory.reward):
        raise TrainingError(
            f"the reward of trajectory '{trajectory.uid}' is {trajectory.reward}",
            f"its components: {dict(trajectory.rewards)}",
        )
    return trajectory.reward


def check_log_probs(trajectories: Iterable[Trajectory]) -> None:
    """Raise `TrainingError` for the first log-probability that is not finite.

    Covers every role and every group, also those with zero advantage: such a value means broken weights or an overflow.
    """
    for trajectory in trajectories:
        for step in trajectory.steps:
            if not all(map(math.isfinite, step.rollout_log_probs or ())):
                raise TrainingError(
                    f"trajectory '{trajectory.uid}' of the group '{trajectory.prompt_uid}' has a log-probability that "
                    f"is not finite, in step {step.step_index} by {step.role}, policy version {step.policy_version}",
                    "look for NaN in the model's weights; try policy.dtype=float32, or resume from the last checkpoint "
                    "with a lower optimizer.lr",
                )


def _is_truncated(trajectory: Trajectory) -> bool:
    return any(step.finish_reason == FinishReason.LENGTH for step in trainable_steps(trajectory))


def _is_nonzero(credit: Credit) -> bool:
    return credit != 0 if isinstance(credit, int | float) else any(credit)


def _by_token(credit: Credit, tokens: int) -> tuple[float, ...]:
    values = (float(credit),) * tokens if isinstance(credit, int | float) else tuple(map(float, credit))
    if len(values) != tokens:
        raise TrainingError(f"{len(values)} advantages for a turn of {tokens} tokens")
    return values


def _finite(values: tuple[float, ...], trajectory: Trajectory) -> tuple[float, ...]:
    """Return `values`, the advantages of a trajectory. Raises `TrainingError` when one is not finite."""
    invalid = next((value for value in values if not math.isfinite(value)), None)
    if invalid is not None:
        raise TrainingError(
            f"an advantage of trajectory '{trajectory.uid}' in the group '{trajectory.prompt_uid}' is {invalid}",
            f"its reward is {trajectory.reward}; if the reward is correct, the algorithm has a bug",
        )
    return values


def _weights(trajectories: Sequence[Trajectory], algorithm: Algorithm) -> Callable[[Trajectory, Step, int], float]:
    """Return a function that gives the loss weight of each token of a step.

    The weights of the batch sum to 1, except for aggregations that sum over tokens. Means over trajectories or prompts
    count failed trajectories even when they have no turn; means over turns or tokens count only existing turns or
    tokens.
    """
    aggregation = algorithm.aggregation
    trainable = [steps for t in trajectories if (steps := trainable_steps(t))]
    counted = [t for t in trajectories if t.status is not Status.COMPLETED or trainable_steps(t)]
    n_turns = sum(len(steps) for steps in trainable)
    n_tokens = sum(len(step.response_ids) for steps in trainable for step in steps)
    if aggregation == "sum":
        return lambda trajectory, step, turns: 1.0
    if aggregation == "token_mean":
        return lambda trajectory, step, turns: 1 / n_tokens
    if aggregation == "sequence_mean":
        return lambda trajectory, step, turns: 1 / (n_turns * len(step.response_ids))
    if aggregation == "sequence_sum":
        return lambda trajectory, step, turns: 1 / n_turns
    if aggregation == "constant_length":
        return lambda trajectory, step, turns: 1 / (n_turns * algorithm.longest)
    if aggregation == "prompt_mean":
        by_prompt: dict[str, int] = {}
        for trajectory in trajectories:
            tokens = sum(len(step.response_ids) for step in trainable_steps(trajectory))
            by_prompt[trajectory.prompt_uid] = by_prompt.get(trajectory.prompt_uid, 0) + tokens
        n_prompts = len({trajectory.prompt_uid for trajectory in counted})
        return lambda trajectory, step, turns: 1 / (n_prompts * by_prompt[trajectory.prompt_uid])
    return lambda trajectory, step, turns: 1 / (len(counted) * turns * len(step.response_ids))
