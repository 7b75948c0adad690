"""Replay buffer: groups of earlier training steps to learn from again.

The buffer holds references to groups in the store, which are read back token for token. Their log-probabilities are
those of the policy that sampled them, so the ratio of the loss accounts for changes of the policy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midstream.core.seeds import unit_interval
from midstream.core.types import Trajectory
from midstream.learn.data.batch import finite_reward, is_scored, trainable_steps
from midstream.learn.rollout_config import ReplayConfig, TrainRolloutConfig
from midstream.record.store import Store


@dataclass(frozen=True, slots=True)
class ReplayEntry:
    """A group in the buffer: the uids of its trajectories, the policy version of its oldest trainable step, its
    priority, and the reward of a greedy attempt at its task, if any.

    The priority is the variance of the group's rewards: largest when half of the attempts succeed, 0 when all rewards
    are equal.
    """

    prompt_uid: str
    uids: tuple[str, ...]
    version: int
    priority: float
    greedy: float | None = None


def choose_entries(
    buffer: Sequence[ReplayEntry], config: ReplayConfig, count: int, *, seed: int, step: int
) -> list[ReplayEntry]:
    """Choose at most `count` distinct groups to learn from again.

    `uniform`: equal chances. `recent`: the newest. `prioritised`: in proportion to priority, so never one with priority
    0 (weighted draws without replacement by the largest u^(1/w), Efraimidis & Spirakis 2006).
    """
    if config.sampling == "recent":
        return list(buffer[max(len(buffer) - count, 0) :])

    def key(entry: ReplayEntry) -> float:
        weight = entry.priority if config.sampling == "prioritised" else 1.0
        return math.log(1 - unit_interval(seed, "replay", step, entry.prompt_uid)) / weight

    drawable = [entry for entry in buffer if config.sampling == "uniform" or entry.priority > 0]
    return sorted(drawable, key=key, reverse=True)[:count]


def load_groups(store: Store, chosen: Sequence[ReplayEntry]) -> list[list[Trajectory]]:
    """Load the chosen groups from the store."""
    return [[store.trajectories.get(uid) for uid in entry.uids] for entry in chosen]


def add_groups(
    buffer: Sequence[ReplayEntry],
    groups: Sequence[Sequence[Trajectory]],
    greedy: Mapping[str, float],
    rules: TrainRolloutConfig,
) -> tuple[ReplayEntry, ...]:
    """Append the groups that can be learned from under `rules`, and drop the oldest entries beyond the capacity."""
    fresh: list[ReplayEntry] = []
    for group in groups:
        versions = [step.policy_version for trajectory in group for step in trainable_steps(trajectory)]
        rewards = [finite_reward(t) for t in group if is_scored(t, rules.failed, rules.truncated)]
        if versions and rewards:
            uid = group[0].prompt_uid
            uids = tuple(trajectory.uid for trajectory in group)
            fresh.append(ReplayEntry(uid, uids, min(versions), statistics.pvariance(rewards), greedy.get(uid)))
    return (*buffer, *fresh)[-rules.replay.capacity :]
