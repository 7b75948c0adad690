"""Collects the groups for a training step: new attempts, groups from a store, and replayed groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from midstream.agents.config import RolloutConfig
from midstream.agents.rollout import groups_of
from midstream.core.types import Status, Task, Trajectory
from midstream.learn.batch import is_scored
from midstream.learn.checkpoint import TrainState
from midstream.learn.replay import ReplayEntry, choose, keep, read
from midstream.learn.setup import TrainingContext
from midstream.learn.source import GroupSource, check_tokens
from midstream.record.group_states import Key
from midstream.record.store import Store
from midstream.rewards.compose import RewardConfig, as_given
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
    taken: tuple[Key, ...] = ()
    """Keys of the groups leased from a store, to be consumed after the update."""


async def collect(
    parts: TrainingContext, store: Store, state: TrainState, step: int, source: GroupSource | None = None
) -> Collected:
    """Return the groups for the training step after `state`: from `source` when given, otherwise by rollout and
    replay."""
    if source is not None:
        return await _taken(parts, source, state, step)
    rollout, replay, version = parts.config.rollout, parts.config.rollout.replay, parts.decoder.version
    oldest = 0 if rollout.max_staleness is None else version - rollout.max_staleness
    buffer = [kept for kept in state.replay if kept.version >= oldest]
    wanted = replay.groups(rollout.tasks_per_step)
    again = choose(buffer, replay, wanted, seed=parts.config.trainer.seed, step=step)
    fresh = await attempt_tasks(
        parts, store, Progress(state.position, state.seen), step, rollout.tasks_per_step - len(again)
    )
    if not replay.capacity:
        return fresh
    buffer = keep(buffer, fresh.groups, fresh.greedy, rollout)
    counts = {
        "replayed_groups": float(len(again)),
        "replay_size": float(len(buffer)),
        "stale_groups": float(sum(kept.version < oldest for kept in state.replay)),
    }
    greedy = {kept.prompt_uid: kept.greedy for kept in again if kept.greedy is not None}
    return Collected(
        [*fresh.groups, *read(store, again)],
        fresh.trajectories,
        fresh.progress,
        buffer,
        fresh.greedy | greedy,
        fresh.counts | counts,
    )


async def _taken(parts: TrainingContext, source: GroupSource, state: TrainState, step: int) -> Collected:
    """Return the next groups of a store."""
    rollout = parts.config.rollout
    oldest = None if rollout.max_staleness is None else parts.decoder.version - rollout.max_staleness
    leased = await source.take(rollout.tasks_per_step, oldest)
    groups = [[await _graded(parts, trajectory) for trajectory in group.trajectories] for group in leased]
    if parts.reward.of_groups:
        declared = parts.config.reward != RewardConfig()
        groups = [
            await parts.reward.score_group(group)
            if declared or any(t.reward is None for t in recorded.trajectories)
            else group
            for group, recorded in zip(groups, leased, strict=True)
        ]
    for trajectory in (t for group in groups for t in group):
        check_tokens(trajectory, len(parts.tokenizer))
    counts = {f"store_{name}": float(value) for name, value in (await source.counts()).items()}
    made = [trajectory for group in groups for trajectory in group]
    return Collected(
        groups, made, Progress(state.position, state.seen), counts=counts, taken=tuple(group.key for group in leased)
    )


async def _graded(parts: TrainingContext, trajectory: Trajectory) -> Trajectory:
    """Score a recorded trajectory.

    A `reward` in the config takes precedence, with the recorded reward available as component `given`. Without a
    `reward`, the recorded reward is used when there is one.
    """
    recorded = {} if trajectory.reward is None else {"given": trajectory.reward}
    if recorded and parts.config.reward == RewardConfig():
        return as_given(trajectory)
    metadata = {**trajectory.metadata, "given": {**trajectory.rewards, **recorded}}
    graded = await parts.reward.score(replace(trajectory, metadata=metadata))
    return replace(graded, rewards={**recorded, **graded.rewards})


async def attempt_tasks(
    parts: TrainingContext, store: Store | None, progress: Progress, step: int, wanted: int
) -> Collected:
    """Attempt the next `wanted` tasks.

    With `rollout.backfill` above 0, groups with equal rewards are dropped and replaced by attempts at other tasks, for
    at most that many extra rounds (DAPO's dynamic sampling, Yu et al. 2025).
    """
    config, curriculum = parts.config, parts.config.tasks.curriculum
    size, seed = config.rollout.group_size, config.trainer.seed
    kept: list[Group] = []
    made: list[Trajectory] = []
    drawn: list[str] = []
    greedy: dict[str, float] = {}
    for turn in range(1 + config.rollout.backfill):
        missing = wanted - len(kept)
        tasks, progress = curriculum.draw(parts.tasks, progress, missing, seed=seed, step=step, drawn=drawn)
        prefix = f"train-{step:06d}" + (f"-more-{turn}" if turn else "")
        attempts = groups_of(tasks, size, prefix=prefix, seed=seed, train_step=step, masked=True)
        trajectories = await _together(parts, store, await parts.manager(store).run(attempts))
        if config.algorithm.greedy_baseline:
            greedy |= await _greedily(parts, store, tasks, prefix, step)
        made += trajectories
        drawn += [task.id for task in tasks]
        groups = _grouped(trajectories)
        kept += [group for group in groups if not config.rollout.backfill or _differ(group, config.rollout)]
        if len(kept) >= wanted:
            break
    progress = curriculum.observed(progress, pass_rates(made, parts.reward.succeeded))
    counts = {"dropped_groups": float(len(drawn) - len(kept)), **curriculum.metrics(progress, step)}
    return Collected(kept, made, progress, greedy=greedy, counts=counts)


def pass_rates(trajectories: Sequence[Trajectory], succeeded: Callable[[Trajectory], bool]) -> dict[str, float]:
    """Return the share of successful attempts by task id. Attempts that failed or have no reward are left out, so that
    an outage does not make tasks look hard."""
    won: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        if trajectory.status is Status.COMPLETED and trajectory.reward is not None:
            won.setdefault(trajectory.task.id, []).append(succeeded(trajectory))
    return {task_id: sum(own) / len(own) for task_id, own in won.items()}


async def _together(parts: TrainingContext, store: Store | None, trajectories: list[Trajectory]) -> list[Trajectory]:
    """Add group components to the rewards of `trajectories`, in the store too."""
    if not parts.reward.of_groups:
        return trajectories
    groups = await asyncio.gather(*(parts.reward.score_group(group) for group in _grouped(trajectories)))
    scored = {trajectory.uid: trajectory for group in groups for trajectory in group}
    if store is not None:
        await asyncio.gather(*(store.trajectories.rescore(trajectory) for trajectory in scored.values()))
    return [scored[trajectory.uid] for trajectory in trajectories]


async def _greedily(
    parts: TrainingContext, store: Store | None, tasks: Sequence[Task], prefix: str, step: int
) -> dict[str, float]:
    """Make one greedy attempt at each task. Returns rewards by the `prompt_uid` of the task's sampled attempts."""
    seed = parts.config.trainer.seed
    attempts = groups_of(tasks, 1, prefix=f"{prefix}-greedy", seed=seed, channel="greedy", train_step=step, masked=True)
    made = await parts.manager(store).run(attempts, temperature=0.0)
    sampled = groups_of(tasks, 1, prefix=prefix, seed=seed)
    return {s.prompt_uid: t.reward for s, t in zip(sampled, made, strict=True) if t.reward is not None}


def _grouped(trajectories: Sequence[Trajectory]) -> list[Group]:
    groups: dict[str, Group] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.prompt_uid, []).append(trajectory)
    return list(groups.values())


def _differ(group: Group, rules: RolloutConfig) -> bool:
    return len({t.reward for t in group if is_scored(t, rules.failed, rules.truncated)}) > 1
