"""Collects the groups for a training step: new attempts, groups from a store, and replayed groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from midstream.core.types import Status, Task, Trajectory
from midstream.learn.algorithms.role_credit import DifferenceCredit
from midstream.learn.data.batch import is_scored
from midstream.learn.data.counterfactuals import rerun_without_roles
from midstream.learn.data.replay import ReplayEntry, add_groups, choose_entries, load_groups
from midstream.learn.data.source import GroupSource, check_tokens
from midstream.learn.rollout_config import TrainRolloutConfig
from midstream.learn.run.setup import TrainingContext
from midstream.record.group_states import Key
from midstream.record.store import Store
from midstream.rewards.compose import RewardConfig, with_recorded_reward
from midstream.rollouts.attempts import Attempt, groups_of
from midstream.tasks.curriculum import Progress

Group = list[Trajectory]


@dataclass(frozen=True, slots=True)
class Collected:
    """Groups for one training step.

    `groups` holds the groups to learn from, replayed ones last. `trajectories` are those sampled in this step.
    `progress` is the position in the task order. `replay` is the buffer after the step. `greedy` holds rewards of
    greedy attempts by `prompt_uid`. `counts` holds statistics on groups.
    """

    groups: list[Group]
    trajectories: list[Trajectory]
    progress: Progress
    replay: tuple[ReplayEntry, ...] = ()
    greedy: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    leased_keys: tuple[Key, ...] = ()
    """Keys of the groups leased from a store, to be consumed after the update."""


async def collect(
    context: TrainingContext,
    store: Store,
    progress: Progress,
    replayable: Sequence[ReplayEntry],
    step: int,
    version: int,
    source: GroupSource | None = None,
) -> Collected:
    """Return the groups for training step `step`: from `source` when given, otherwise by rollout and replay.

    `progress` and the buffer `replayable` are those after the previous step; `version` is the policy version by which
    `rollout.max_staleness` is measured.
    """
    if source is not None:
        return await _collect_from_store(context, source, progress, version)
    rollout, replay = context.config.rollout, context.config.rollout.replay
    oldest = 0 if rollout.max_staleness is None else version - rollout.max_staleness
    buffer = [entry for entry in replayable if entry.version >= oldest]
    wanted = replay.groups(rollout.tasks_per_step)
    replayed = choose_entries(buffer, replay, wanted, seed=context.config.trainer.seed, step=step)
    sampled = await attempt_tasks(context, store, progress, step, rollout.tasks_per_step - len(replayed))
    if not replay.capacity:
        return sampled
    buffer = add_groups(buffer, sampled.groups, sampled.greedy, rollout)
    counts = {
        "replayed_groups": float(len(replayed)),
        "replay_size": float(len(buffer)),
        "stale_groups": float(sum(entry.version < oldest for entry in replayable)),
    }
    greedy = {entry.prompt_uid: entry.greedy for entry in replayed if entry.greedy is not None}
    return Collected(
        [*sampled.groups, *map(context.adapters.assign, load_groups(store, replayed))],
        sampled.trajectories,
        sampled.progress,
        buffer,
        sampled.greedy | greedy,
        sampled.counts | counts,
    )


async def _collect_from_store(
    context: TrainingContext, source: GroupSource, progress: Progress, version: int
) -> Collected:
    """Return the next groups of a store."""
    rollout = context.config.rollout
    oldest = None if rollout.max_staleness is None else version - rollout.max_staleness
    leased = await source.lease(rollout.tasks_per_step, oldest)
    groups = [[await _score_recorded(context, trajectory) for trajectory in group.trajectories] for group in leased]
    if context.reward.scores_groups:
        declared = context.config.reward != RewardConfig()
        groups = [
            await context.reward.score_group(group)
            if declared or any(t.reward is None for t in recorded.trajectories)
            else group
            for group, recorded in zip(groups, leased, strict=True)
        ]
    groups = [context.adapters.assign(group) for group in groups]
    for trajectory in (t for group in groups for t in group):
        check_tokens(trajectory, len(context.tokenizer))
    counts = {f"store_{name}": float(value) for name, value in (await source.counts()).items()}
    trajectories = [trajectory for group in groups for trajectory in group]
    return Collected(
        groups,
        trajectories,
        progress,
        counts=counts,
        leased_keys=tuple(group.key for group in leased),
    )


async def _score_recorded(context: TrainingContext, trajectory: Trajectory) -> Trajectory:
    """Score a recorded trajectory.

    A `reward` in the config takes precedence, with the recorded reward available as component `given`. Without a
    `reward`, the recorded reward is used when there is one.
    """
    recorded = {} if trajectory.reward is None else {"given": trajectory.reward}
    if recorded and context.config.reward == RewardConfig():
        return with_recorded_reward(trajectory)
    metadata = {**trajectory.metadata, "given": {**trajectory.rewards, **recorded}}
    graded = await context.reward.score(replace(trajectory, metadata=metadata))
    return replace(graded, rewards={**recorded, **graded.rewards})


async def attempt_tasks(
    context: TrainingContext, store: Store | None, progress: Progress, step: int, wanted: int
) -> Collected:
    """Attempt the next `wanted` tasks.

    With `rollout.backfill` above 0, groups with equal rewards are dropped and replaced by attempts at other tasks, for
    at most that many extra rounds (DAPO's dynamic sampling, Yu et al. 2025). Where credit does not follow the reward of
    the trajectory (`algorithm.role_credit`), equal rewards may still give advantages, and no group is dropped.
    """
    config, curriculum = context.config, context.config.tasks.curriculum
    size, seed = config.rollout.group_size, config.trainer.seed
    kept: list[Group] = []
    attempted: list[Trajectory] = []
    drawn: list[str] = []
    greedy: dict[str, float] = {}
    made: dict[str, Attempt] = {}
    drops = config.rollout.backfill > 0 and config.algorithm.role_credit.follows_reward
    for round_ in range(1 + config.rollout.backfill):
        missing = wanted - len(kept)
        tasks, progress = curriculum.draw(context.tasks, progress, missing, seed=seed, step=step, drawn=drawn)
        prefix = f"train-{step:06d}" + (f"-more-{round_}" if round_ else "")
        attempts = groups_of(tasks, size, prefix=prefix, seed=seed, train_step=step, masked=True)
        trajectories = await _score_groups(context, store, await context.manager(store).run(attempts))
        made |= {attempt.uid: attempt for attempt in attempts}
        if config.algorithm.greedy_baseline:
            greedy |= await _greedy_rewards(context, store, tasks, prefix, step)
        attempted += trajectories
        drawn += [task.id for task in tasks]
        groups = _group_by_prompt(trajectories)
        kept += [group for group in groups if not drops or _rewards_differ(group, config.rollout)]
        if len(kept) >= wanted:
            break
    progress = curriculum.observed(progress, pass_rates(attempted, context.reward.succeeded))
    counts = {"dropped_groups": float(len(drawn) - len(kept)), **curriculum.metrics(progress, step)}
    if isinstance(credit := config.algorithm.role_credit, DifferenceCredit):
        kept, reruns = await rerun_without_roles(context, store, kept, made, credit)
        counts |= reruns
    return Collected(kept, attempted, progress, greedy=greedy, counts=counts)


def pass_rates(trajectories: Sequence[Trajectory], succeeded: Callable[[Trajectory], bool]) -> dict[str, float]:
    """Return the share of successful attempts by task id. Attempts that failed or have no reward are left out, so that
    an outage does not make tasks look hard."""
    successes: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        if trajectory.status is Status.COMPLETED and trajectory.reward is not None:
            successes.setdefault(trajectory.task.id, []).append(succeeded(trajectory))
    return {task_id: sum(results) / len(results) for task_id, results in successes.items()}


async def _score_groups(
    context: TrainingContext, store: Store | None, trajectories: list[Trajectory]
) -> list[Trajectory]:
    """Add group components to the rewards of `trajectories`, in the store too."""
    if not context.reward.scores_groups:
        return trajectories
    groups = await asyncio.gather(*(context.reward.score_group(group) for group in _group_by_prompt(trajectories)))
    scored = {trajectory.uid: trajectory for group in groups for trajectory in group}
    if store is not None:
        await asyncio.gather(*(store.trajectories.rescore(trajectory) for trajectory in scored.values()))
    return [scored[trajectory.uid] for trajectory in trajectories]


async def _greedy_rewards(
    context: TrainingContext, store: Store | None, tasks: Sequence[Task], prefix: str, step: int
) -> dict[str, float]:
    """Make one greedy attempt at each task. Returns rewards by the `prompt_uid` of the task's sampled attempts."""
    seed = context.config.trainer.seed
    attempts = groups_of(tasks, 1, prefix=f"{prefix}-greedy", seed=seed, channel="greedy", train_step=step, masked=True)
    trajectories = await context.manager(store).run(attempts, temperature=0.0)
    sampled = groups_of(tasks, 1, prefix=prefix, seed=seed)
    return {s.prompt_uid: t.reward for s, t in zip(sampled, trajectories, strict=True) if t.reward is not None}


def _group_by_prompt(trajectories: Sequence[Trajectory]) -> list[Group]:
    groups: dict[str, Group] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.prompt_uid, []).append(trajectory)
    return list(groups.values())


def _rewards_differ(group: Group, rules: TrainRolloutConfig) -> bool:
    return len({t.reward for t in group if is_scored(t, rules.failed, rules.truncated)}) > 1
