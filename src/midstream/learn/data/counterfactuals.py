"""Rewards of a training step's attempts without each of their roles, for `algorithm.role_credit: difference`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from midstream.core.types import Trajectory
from midstream.learn.algorithms.outcome import REWARD_WITHOUT
from midstream.learn.algorithms.role_credit import DifferenceCredit
from midstream.learn.data.batch import is_scored
from midstream.learn.rollout_config import TrainRolloutConfig
from midstream.learn.run.setup import TrainingContext
from midstream.record.store import Store
from midstream.rollouts.attempts import Attempt
from midstream.rollouts.reruns import rerun_of, trained_roles


async def rerun_without_roles(
    context: TrainingContext,
    store: Store | None,
    groups: Sequence[Sequence[Trajectory]],
    attempts: Mapping[str, Attempt],
    credit: DifferenceCredit,
) -> tuple[list[list[Trajectory]], dict[str, float]]:
    """Repeat the attempts of `groups` without each trained role, as `credit` says. `attempts` are by uid.

    Returns the groups with the rewards of their re-runs in `metadata["reward_without"]`, which are also written to the
    store, and metrics: the number of re-runs, and of those without a reward, which have none there either."""
    chosen = choose_reruns(groups, credit, context.config.rollout)
    reruns = [rerun_of(attempts[trajectory.uid], trajectory, role, credit.reply) for trajectory, role in chosen]
    ended = await context.manager(store).run(reruns, temperature=0.0 if credit.greedy else None)
    without: dict[str, dict[str, float]] = {}
    for (trajectory, role), rerun in zip(chosen, ended, strict=True):
        if rerun.reward is not None:
            without.setdefault(trajectory.uid, {})[role] = rerun.reward
    found = [
        [
            replace(one, metadata={**one.metadata, REWARD_WITHOUT: without[one.uid]}) if one.uid in without else one
            for one in group
        ]
        for group in groups
    ]
    if store is not None:
        changed = (one for group in found for one in group if one.uid in without)
        await asyncio.gather(*(store.trajectories.rescore(one) for one in changed))
    unscored = sum(rerun.reward is None for rerun in ended)
    return found, {"reruns": float(len(ended)), "reruns_unscored": float(unscored)}


def choose_reruns(
    groups: Sequence[Sequence[Trajectory]], credit: DifferenceCredit, rollout: TrainRolloutConfig
) -> list[tuple[Trajectory, str]]:
    """Return the trajectories to repeat, each with the role to leave out: at most `credit.max_reruns`, evenly over
    groups. Trajectories that are not scored, and roles that did not act, need none."""
    scored = [[t for t in group if is_scored(t, rollout.failed, rollout.truncated)] for group in groups]
    in_turn = (one for members in zip_longest(*scored) for one in members if one is not None)
    pairs = [(trajectory, role) for trajectory in in_turn for role in trained_roles(trajectory)]
    return pairs[: credit.max_reruns]
