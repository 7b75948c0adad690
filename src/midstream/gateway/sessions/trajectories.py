"""The open trajectories: opened, restored from the store, changed, and ended once.

The store has all that was recorded; memory has what is needed to continue. An idle trajectory is evicted from memory
and restored when its agent calls again. Gateways that share a store hold disjoint sets of trajectories; see
`store/servers.py`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from midstream.core import clock
from midstream.core.errors import AlreadyEnded, GroupClosed
from midstream.core.types import Status, Step, Trajectory
from midstream.gateway.config import GatewayConfig
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions.active import (
    ActiveTrajectory,
    ReportedEnd,
    ended_error,
    held_by_another_gateway,
    trajectory_ended,
)
from midstream.gateway.sessions.locks import Locks
from midstream.gateway.sessions.opening import Opening, check_same, fields_of, task_of
from midstream.gateway.sessions.scoring import scored
from midstream.gateway.sessions.submissions import contains, submit
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction

COMPLETION_KEY = "completion_key"
"""Metadata key of the idempotency key with which a trajectory was completed."""


class Trajectories:
    """The open trajectories of one gateway. Without a store there are only those that a rollout attaches."""

    def __init__(
        self, config: GatewayConfig, store: Store | None, role_engine: RoleEngine, reward: RewardFunction | None
    ) -> None:
        assert role_engine.tokenizer is not None
        self._config, self._store, self._reward = config, store, reward
        self._role_engine, self._tokenizer = role_engine, role_engine.tokenizer
        self.in_memory: dict[str, ActiveTrajectory] = {}
        self.evicted: dict[str, float] = {}
        """Open trajectories that are not in memory, with the time of their last call, by the monotonic clock."""
        self.locks = Locks()
        """By uid: held while a trajectory is opened, restored, or ended."""
        self.opened = 0
        self.refused = 0
        """Number of openings refused because the group was complete."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """Number of ended trajectories by status and cause: `agent` (completed by a request), `silent`, `never_called`
        (silent without a step) or `group_deadline`."""

    def __len__(self) -> int:
        return len(self.in_memory) + len(self.evicted)

    def attach(self, active: ActiveTrajectory) -> None:
        """Serve a rollout's trajectory until it is detached."""
        self.in_memory[active.uid] = active

    def detach(self, active: ActiveTrajectory) -> None:
        active.ended = active.ended or Status.COMPLETED
        self.in_memory.pop(active.uid, None)

    async def open(self, opening: Opening, *, strict: bool = False) -> ActiveTrajectory:
        """Open a trajectory on disk; return the open one if there is one with this uid. Raises `ApiError` 409 for an
        ended trajectory, for a complete group, and with `strict` for an open one with other values."""
        if self._store is None:
            raise ApiError(404, "this gateway serves a rollout, which opens its trajectories itself")
        uid = opening.uid or uuid.uuid4().hex
        async with self.locks.get(uid):
            found = None if opening.uid is None else await self.restore(uid)
            if found is not None:
                check_same(found, opening, strict=strict)
                return found
            prompt_uid = opening.prompt_uid or uuid.uuid4().hex
            channel = opening.channel or self._config.channel
            task = task_of(prompt_uid, opening)
            recorder = self._recorder(uid, prompt_uid, channel)
            active = ActiveTrajectory(uid, prompt_uid, channel, task, dict(opening.metadata), recorder)
            active.group_size, active.key = opening.group_size or self._config.group_size, opening.key
            with self._ended_as_api_error(active):
                await self._write(active, joins=opening.prompt_uid is not None)
            self._keep(active)
            self.opened += 1
            return active

    async def get(self, uid: str, prompt_uid: str | None = None) -> ActiveTrajectory:
        """Return the open trajectory `uid`. Raises `ApiError` 404 if there is none, 409 if it has ended."""
        active = self.in_memory.get(uid)
        if active is None:
            async with self.locks.get(uid):
                active = await self.restore(uid)
        if active is None:
            raise ApiError(404, f"no trajectory '{uid}'; open one with POST /init_trajectory")
        if prompt_uid is not None and prompt_uid != active.prompt_uid:
            raise ApiError(404, f"trajectory '{uid}' is in the group '{active.prompt_uid}', not in '{prompt_uid}'")
        active.touch()
        return active

    def is_open(self, uid: str) -> bool:
        """Return whether the trajectory is known to be open, without a look into the store."""
        return uid in self.in_memory or uid in self.evicted

    async def exists(self, uid: str) -> bool:
        """Return whether there is such a trajectory, open or ended."""
        return uid in self.in_memory or await self.load(uid) is not None

    async def look_up(self, uid: str) -> Trajectory:
        """Return the trajectory as recorded so far, open or ended. Raises `ApiError` 404."""
        active = self.in_memory.get(uid)
        if active is not None:
            return active.trajectory(self._tokenizer, Status.RUNNING)
        stored = await self.load(uid)
        if stored is None:
            raise ApiError(404, f"no trajectory '{uid}'")
        return stored

    async def load(self, uid: str) -> Trajectory | None:
        """Return the trajectory from the store."""
        found = None if self._store is None else await asyncio.to_thread(self._store.trajectories.find, uid)
        return None if found is None else found.trajectory

    async def submit(self, active: ActiveTrajectory, step: Step) -> bool:
        """Add a submitted step; see `submissions.submit`. Raises `ApiError` 409 if the trajectory has ended."""
        async with self.locks.get(active.uid):
            if active.ended is not None:
                raise ended_error(active)
            with self._ended_as_api_error(active):
                active.touch()
                added = await submit(active.recorder, self._store, step)
            if active.recorder.already_ended:
                self.ended_in_store(active)
            return added

    async def ended_with(self, step: Step) -> bool | None:
        """Return whether the step's trajectory has ended and contains it; None if it is open or unknown. Raises
        `ApiError` 409 if its agent completed it without this step."""
        if step.trajectory_uid in self.in_memory:
            return None
        stored = await self.load(step.trajectory_uid)
        if stored is None or stored.status is Status.RUNNING:
            return None
        return contains(stored, step)

    async def register(self, active: ActiveTrajectory, opening: Opening) -> None:
        """Add task fields and metadata to an open trajectory, and change its channel while it has no steps."""
        if opening.channel not in (None, active.channel) and active.recorder.steps:
            raise ApiError(
                409, f"trajectory '{active.uid}' already has recorded steps in the channel '{active.channel}'"
            )
        active.metadata |= opening.metadata
        if self._store is None:
            return
        active.task = task_of(active.prompt_uid, replace(opening, task={**fields_of(active.task), **opening.task}))
        with self._ended_as_api_error(active):
            if opening.channel in (None, active.channel):
                await self._store.trajectories.amend(active.uid, task=active.task, session=active.session())
                return
            before = active.channel, active.recorder
            active.channel = opening.channel or active.channel
            active.recorder = self._recorder(active.uid, active.prompt_uid, active.channel)
            try:
                await self._write(active, joins=True)
            except BaseException:
                active.channel, active.recorder = before
                raise

    async def close(
        self,
        active: ActiveTrajectory,
        status: Status = Status.COMPLETED,
        *,
        reward: float | None = None,
        rewards: Mapping[str, float] | None = None,
        answer: str | None = None,
        error: str = "",
        cause: str = "agent",
        key: str | None = None,
    ) -> Trajectory:
        """End a trajectory, once, and score it (see `scoring.scored`). `cause` is for the counters, `key` the caller's
        idempotency key. Raises `ApiError` 409 if it has ended."""
        async with self.locks.get(active.uid):
            if active.ended is not None:
                raise ended_error(active)
            active.ended, active.end_reason = status, error
            if active.role_engines:
                problem = error or ("" if status is Status.COMPLETED else str(status))
                active.reported = ReportedEnd(answer, reward, dict(rewards or {}), problem)
                return active.trajectory(self._tokenizer, status)
            if key is not None:
                active.metadata[COMPLETION_KEY] = key
            try:
                with self._ended_as_api_error(active):
                    trajectory = await self._finish(active, status, reward, dict(rewards or {}), answer, error)
            except BaseException:
                if active.uid in self.in_memory:
                    active.ended, active.end_reason = None, ""
                raise
            self.evict(active)
            self.ended[status, cause] += 1
            return trajectory

    def ended_in_store(self, active: ActiveTrajectory) -> None:
        """Note that the trainer has ended the trajectory, at the deadline of its group."""
        if active.uid in self.in_memory:
            self.evict(active)
            self.ended[Status.TIMED_OUT, "group_deadline"] += 1
            active.ended, active.end_reason = Status.TIMED_OUT, "the deadline of its group has passed"

    async def restore(self, uid: str) -> ActiveTrajectory | None:
        """Return the open trajectory `uid`, from the store if it is not in memory; None if there is none. Hold its
        lock. Raises `ApiError` 409 if it has ended, 503 if another gateway holds it."""
        if uid in self.in_memory:
            return self.in_memory[uid]
        if self._store is None or (found := await asyncio.to_thread(self._store.trajectories.find, uid)) is None:
            return None
        stored, session = found.trajectory, found.session or {}
        if stored.status is not Status.RUNNING:
            raise trajectory_ended(uid, stored.status, stored.error)
        if found.server not in (None, self._store.servers.own):
            raise held_by_another_gateway(uid, await asyncio.to_thread(self._store.servers.name_of, found.server))
        recorder = self._recorder(uid, stored.prompt_uid, found.channel)
        await asyncio.to_thread(recorder.restore, stored.steps, self._role_engine)
        metadata = dict(session.get("metadata", {}))
        active = ActiveTrajectory(uid, stored.prompt_uid, found.channel, stored.task, metadata, recorder)
        active.group_size, active.key = session.get("group_size", 1), session.get("key")
        self._keep(active)
        return active

    def evict(self, active: ActiveTrajectory) -> None:
        """Remove the trajectory from memory."""
        if self.in_memory.pop(active.uid, None) is not None:
            self._role_engine.engine.leave(active.uid)

    def _keep(self, active: ActiveTrajectory) -> None:
        self.in_memory[active.uid] = active
        self.evicted.pop(active.uid, None)
        self._role_engine.engine.join(active.uid)

    def _recorder(self, uid: str, prompt_uid: str, channel: str) -> Recorder:
        seed, ignore = uuid.uuid4().int >> 65, self._config.prefix_ignore
        return Recorder(uid, prompt_uid, seed=seed, store=self._store, channel=channel, prefix_ignore=ignore)

    async def _write(self, active: ActiveTrajectory, *, joins: bool) -> None:
        """Write a new trajectory to the store. `joins`: it may join an existing group. Raises `ApiError` 409 if the
        group is complete."""
        assert self._store is not None
        timeout_s = self._config.group_timeout_s
        try:
            await self._store.trajectories.open(
                active.uid,
                active.prompt_uid,
                active.task,
                active.channel,
                group_size=active.group_size,
                deadline=None if timeout_s is None else clock.time() + timeout_s,
                session=active.session(),
                joins=joins,
            )
        except GroupClosed as error:
            self.refused += 1
            raise ApiError(409, f"{error.message}; {error.hint}", code="group_closed", param="prompt_uid") from None

    async def _finish(
        self,
        active: ActiveTrajectory,
        status: Status,
        reward: float | None,
        rewards: dict[str, float],
        answer: str | None,
        error: str,
    ) -> Trajectory:
        """Score the trajectory and write its end to the store."""
        assert self._store is not None
        unscored = active.trajectory(self._tokenizer, status)
        trajectory = await scored(unscored, self._reward, reward=reward, rewards=rewards, answer=answer, error=error)
        # Unchanged steps are in the store already: only the last one is newly marked as last.
        changed = trajectory.steps if trajectory.steps != unscored.steps else trajectory.steps[-1:]
        await self._store.trajectories.finish(replace(trajectory, steps=changed), active.channel)
        return trajectory

    @contextmanager
    def _ended_as_api_error(self, active: ActiveTrajectory) -> Iterator[None]:
        """Map the store's `AlreadyEnded` to `ApiError` 409."""
        try:
            yield
        except AlreadyEnded:
            self.ended_in_store(active)
            raise ended_error(active) from None
