"""From groups of trajectories to what the learner computes: turns with an advantage and a weight per token.

Groups without variance and trajectories that are masked keep their place in every denominator but cost no computation.
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
from midstream.learn.altered_sampling import alterations, shares
from midstream.learn.log_probs import TokenSequence


@dataclass(frozen=True, slots=True)
class LearningTurn:
    """One trainable step: its tokens, the log-probability each was sampled with, the advantage of each, and the weight
    that all of them have."""

    sequence: TokenSequence
    old_log_probs: tuple[float, ...]
    advantages: tuple[float, ...]
    weight: float
    role: str
    group: str
    place: TurnKey = ("", 0)
    version: int = 0
    """The policy version that sampled it."""
    scale: tuple[float, ...] = ()
    """What the policy loss of each token is multiplied by; 1 when empty."""
    values: tuple[float, ...] = ()
    """What the critic said of each token as the step began; empty without a critic."""
    targets: tuple[float, ...] = ()
    """What it should have said."""


@dataclass(frozen=True, slots=True)
class LearningBatch:
    """`turns` are those that carry gradient; `counts` says what became of everything else."""

    turns: list[LearningTurn]
    counts: dict[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the algorithm remembers after this batch."""
    by_turn: bool = False
    """Whether each turn has one place in the denominator, however many tokens it has."""

    def parts(self, n: int) -> list[LearningBatch]:
        """`n` batches of neighbouring groups for separate updates, each with weights of its own mean; fewer when there
        are fewer groups."""
        if n == 1:
            return [self]
        groups = list(dict.fromkeys(turn.group for turn in self.turns))
        n = min(n, len(groups))
        cuts = [round(len(groups) * part / n) for part in range(n + 1)] if n else [0]
        parts: list[LearningBatch] = []
        for start, stop in pairwise(cuts):
            chosen = set(groups[start:stop])
            turns = [t for t in self.turns if t.group in chosen]
            share = self._mass(turns) / self._mass(self.turns)
            parts.append(replace(self, turns=[replace(turn, weight=turn.weight / share) for turn in turns]))
        return parts

    def since(self, version: int) -> LearningBatch:
        """Without the turns that an older policy sampled; weights stay, and so do their places in the denominators."""
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
    readings: Mapping[TurnKey, PolicyOutputs] | None = None,
    memory: Mapping[str, float] | None = None,
) -> LearningBatch:
    """Advantages and weights by `algorithm`.

    `failed` and `truncated` are the rules of those names in `rollout`, `altered` is its `altered_sampling`. `keep_zero`
    keeps turns of zero advantage: a KL term or entropy bonus acts on them too. `greedy`, `readings` and `memory` are
    what estimators may ask for: see `Outcome`. Raises `TrainingError` for a reward, advantage or log-probability that
    is not finite."""
    if truncated == "drop":
        groups = [[t for t in group if not _is_truncated(t)] for group in groups]
    scored = [[t for t in group if is_scored(t, failed, truncated)] for group in groups]
    for trajectory in (t for group in scored for t in group):
        finite_reward(trajectory)
    check_log_probs(t for group in groups for t in group)
    live = [group for group in scored if len(group) > 0]
    outcomes = [
        [
            outcome_of(t, trainable_steps(t), greedy=(greedy or {}).get(t.prompt_uid), readings=readings, memory=memory)
            for t in group
        ]
        for group in live
    ]
    by_group = algorithm.advantages(outcomes)
    targets = algorithm.targets(outcomes) or [[[()] * len(o.turns) for o in group] for group in outcomes]
    counted = [t for group in groups for t in group] if failed == "mask" else [t for group in live for t in group]
    weigh = _weights(counted, algorithm)
    turns: list[LearningTurn] = []
    flat: list[bool] = []
    for group, values, wanted in zip(live, by_group, targets, strict=True):
        flat.append(not any(_teaches(credit) for own in values for credit in own))
        for trajectory, credits, goals in zip(group, values, wanted, strict=True):
            steps = trainable_steps(trajectory)
            for step, credit, goal in zip(steps, credits, goals, strict=True):
                advantages = _finite(_by_token(credit, len(step.response_ids)), trajectory)
                if truncated == "mask" and _is_truncated(trajectory):
                    continue
                if altered == "mask" and alterations(step):
                    continue
                if keep_zero or any(advantages):
                    place = (trajectory.uid, step.step_index)
                    said = (readings or {}).get(place, PolicyOutputs()).values
                    turns.append(
                        LearningTurn(
                            TokenSequence(step.prompt_ids, step.response_ids, step.temperature),
                            tuple(step.rollout_log_probs or ()),
                            advantages,
                            weigh(trajectory, step, len(steps)),
                            step.role,
                            trajectory.prompt_uid,
                            place,
                            step.policy_version,
                            values=tuple(said),
                            targets=tuple(goal) if isinstance(goal, Sequence) else (),
                        )
                    )
    counts = {
        "groups": float(len(groups)),
        "zero_variance_groups": float(sum(flat)),
        "empty_groups": float(len(groups) - len(live)),
        "failed_trajectories": float(sum(t.status is not Status.COMPLETED for group in groups for t in group)),
        "untrainable_trajectories": float(sum(not trainable_steps(t) for t in counted)),
        **shares(step for group in live for t in group for step in trainable_steps(t)),
        **algorithm.metrics(outcomes),
    }
    kept = algorithm.remember(outcomes) if outcomes else dict(memory or {})
    return LearningBatch(turns, counts, kept, by_turn=algorithm.aggregation in ("sequence_sum", "constant_length"))


def trainable_steps(trajectory: Trajectory) -> list[Step]:
    """The steps whose tokens carry loss."""
    return [step for step in trajectory.steps if step.trainable and step.response_ids and step.rollout_log_probs]


def is_scored(trajectory: Trajectory, failed: str, truncated: str) -> bool:
    """Whether a trajectory counts in its group's statistics, by the rules of those names in `rollout`."""
    if truncated == "drop" and _is_truncated(trajectory):
        return False
    if failure_of(trajectory) not in (None, Failure.AGENT):
        return False  # an outage or a broken reward component says nothing about the policy
    return trajectory.reward is not None and (trajectory.status is Status.COMPLETED or failed == "score")


def finite_reward(trajectory: Trajectory) -> float:
    """The reward of a scored trajectory; `TrainingError` when it is not finite."""
    if trajectory.reward is None or not math.isfinite(trajectory.reward):
        raise TrainingError(
            f"the reward of trajectory '{trajectory.uid}' is {trajectory.reward}",
            f"its components: {dict(trajectory.rewards)}",
        )
    return trajectory.reward


def check_log_probs(trajectories: Iterable[Trajectory]) -> None:
    """Raise `TrainingError` for the first log-probability that is not finite, of any role and whatever its group's
    advantages are: a model that gives one has broken weights or overflows."""
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


def _teaches(credit: Credit) -> bool:
    return credit != 0 if isinstance(credit, int | float) else any(credit)


def _by_token(credit: Credit, tokens: int) -> tuple[float, ...]:
    values = (float(credit),) * tokens if isinstance(credit, int | float) else tuple(map(float, credit))
    if len(values) != tokens:
        raise TrainingError(f"{len(values)} advantages for a turn of {tokens} tokens")
    return values


def _finite(values: tuple[float, ...], trajectory: Trajectory) -> tuple[float, ...]:
    """`values`, a trajectory's advantages; `TrainingError` when one is not finite."""
    broken = next((value for value in values if not math.isfinite(value)), None)
    if broken is not None:
        raise TrainingError(
            f"an advantage of trajectory '{trajectory.uid}' in the group '{trajectory.prompt_uid}' is {broken}",
            f"its reward is {trajectory.reward}; if that is as it should be, this is a fault of the algorithm",
        )
    return values


def _weights(trajectories: Sequence[Trajectory], algorithm: Algorithm) -> Callable[[Trajectory, Step, int], float]:
    """The weight of one token of a step. All weights of the batch sum to 1, but for the aggregations that add tokens
    up. In a mean over trajectories or prompts, one that failed has its place though it came to say nothing; in a mean
    over turns or tokens it has that of those it has."""
    aggregation = algorithm.aggregation
    trainable = [steps for t in trajectories if (steps := trainable_steps(t))]
    placed = [t for t in trajectories if t.status is not Status.COMPLETED or trainable_steps(t)]
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
        n_prompts = len({trajectory.prompt_uid for trajectory in placed})
        return lambda trajectory, step, turns: 1 / (n_prompts * by_prompt[trajectory.prompt_uid])
    return lambda trajectory, step, turns: 1 / (len(placed) * turns * len(step.response_ids))
