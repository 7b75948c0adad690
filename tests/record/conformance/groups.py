"""Fills and leases groups, for tests of the store."""

from __future__ import annotations

import asyncio
from typing import Any

from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record.group_states import GroupState
from midstream.record.store import Store

TASK = Task(id="t", prompt="How many?")


def keys(*prompt_uids: str, channel: str = "train") -> list[tuple[str, str]]:
    return [(uid, channel) for uid in prompt_uids]


def begin(store: Store, uid: str, channel: str = "train", **group: Any) -> None:
    store.trajectories.begin(uid, uid.partition("-")[0], TASK, channel, **group)


def end(store: Store, uid: str, status: Status = Status.COMPLETED, version: int = 0) -> None:
    step = Step(
        prompt_ids=(1,),
        response_ids=(2,),
        trajectory_uid=uid,
        prompt_uid=uid.partition("-")[0],
        policy_version=version,
        trainable=True,
    )
    store.trajectories.append_sync(step)
    done = Trajectory(uid=uid, prompt_uid=uid.partition("-")[0], task=TASK, steps=(step,), status=status)
    asyncio.run(store.trajectories.finish(done))


def complete(store: Store, prompt_uid: str, size: int = 2, version: int = 0, channel: str = "train") -> None:
    members = [f"{prompt_uid}-{member}{channel.removeprefix('train')}" for member in range(size)]
    for uid in members:
        begin(store, uid, channel, group_size=size)
    for uid in members:
        end(store, uid, version=version)


def lease(
    store: Store, owner: str = "run", count: int = 9, lease_s: float = 60, channel: str = "train", **more: Any
) -> list[str]:
    return [leased.prompt_uid for leased in store.groups.lease(owner, count, channel, lease_s, **more)]


def counts(store: Store, channel: str = "train") -> dict[str, float]:
    found = store.groups.counts(channel)
    return {state: count for state, count in found.items() if count and state in list(GroupState)}
