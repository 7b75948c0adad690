"""What a step learns from: attempts at freshly drawn tasks, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midstream.agents.rollout import groups_of
from midstream.core.types import Task, Trajectory
from midstream.learn.setup import Parts
from midstream.record.store import Store

Group = list[Trajectory]


@dataclass(frozen=True, slots=True)
class Collected:
    """`groups` to learn from; `trajectories` are all that were sampled, `position` is that of the next task to draw,
    `dropped` counts groups that gave way to others, and `greedy` is what a greedy attempt earned, by `prompt_uid`."""

    groups: list[Group]
    trajectories: list[Trajectory]
    position: int
    dropped: int
    greedy: dict[str, float]


async def collect(parts: Parts, store: Store | None, position: int, step: int) -> Collected:
    """Attempt the next `rollout.tasks_per_step` tasks. With `rollout.backfill` above 0, groups whose rewards are all
    equal are dropped, and other tasks are attempted in their place, for at most that many rounds more (DAPO's dynamic
    sampling, Yu et al. 2025)."""
    config = parts.config
    wanted, kept, made, drawn = config.rollout.tasks_per_step, [], [], 0
    greedy: dict[str, float] = {}
    for turn in range(1 + config.rollout.backfill):
        missing = wanted - len(kept)
        tasks = [parts.tasks.get("train", position + drawn + place) for place in range(missing)]
        prefix = f"train-{step:06d}" + (f"-more-{turn}" if turn else "")
        size, seed = config.rollout.group_size, config.trainer.seed
        attempts = groups_of(tasks, size, prefix=prefix, seed=seed, train_step=step, masked=True)
        trajectories = await parts.manager(store).run(attempts)
        if config.algorithm.greedy_baseline:
            greedy |= await _greedily(parts, store, tasks, prefix, step)
        made += trajectories
        drawn += missing
        groups = _grouped(trajectories)
        kept += [group for group in groups if not config.rollout.backfill or _differ(group)]
        if len(kept) >= wanted:
            break
    return Collected(kept, made, position + drawn, drawn - len(kept), greedy)


async def _greedily(
    parts: Parts, store: Store | None, tasks: Sequence[Task], prefix: str, step: int
) -> dict[str, float]:
    """What one greedy attempt at each task earned, by the `prompt_uid` its sampled attempts have."""
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


def _differ(group: Group) -> bool:
    return len({trajectory.reward for trajectory in group if trajectory.reward is not None}) > 1
