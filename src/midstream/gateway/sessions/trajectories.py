"""The trajectories under way: opened, found again after a restart, touched, and closed once.

What one has said is in the store; here is what it needs to go on. One that has been idle for a while is forgotten and
read back when its agent calls again. Of the gateways that share a store each holds its own (`record/servers.py`), and
closes no other's.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from midstream.core import clock
from midstream.core.errors import AlreadyEnded, GroupClosed, MidstreamError
from midstream.core.types import Status, Step, Trajectory
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions.active import (
    ActiveTrajectory,
    Locks,
    Opening,
    ReportedEnd,
    elsewhere,
    ended,
    must_be_alike,
    over,
    session_of,
    task_of,
    told_of,
)
from midstream.gateway.sessions.scoring import scored
from midstream.gateway.sessions.submitted import holds, submit
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.store import Store
from midstream.record.tree import PREFIX_IGNORE
from midstream.rewards import RewardFunction

_log = logging.getLogger(__name__)
IDLE_S = 120.0
"""After this long without a call a trajectory's steps leave memory; they are in the store."""
COMPLETION_KEY = "completion_key"
"""In a trajectory's metadata: the idempotency key it was completed with."""
CLOSED_AT_ONCE = 256
"""Silent trajectories that are closed side by side, so that they share flushes of the disk."""


class Trajectories:
    """Every trajectory that is open, by its uid. Without a store there are those that a rollout attaches, and no
    others."""

    def __init__(
        self,
        store: Store | None,
        role_engine: RoleEngine,
        *,
        name: str,
        channel: str,
        group_size: int,
        group_timeout_s: float | None,
        expiry_s: float,
        reward: RewardFunction | None,
        prefix_ignore: Sequence[str] = PREFIX_IGNORE,
    ) -> None:
        self._store, self._role_engine, self._reward, self._prefix_ignore = store, role_engine, reward, prefix_ignore
        assert role_engine.tokenizer is not None
        self._tokenizer = role_engine.tokenizer
        self._channel, self._group_size = channel, group_size
        self._group_timeout_s, self._expiry_s = group_timeout_s, expiry_s
        self._live: dict[str, ActiveTrajectory] = {}
        self._silent_since: dict[str, float] = {}
        """When those that are open, but not in memory, were last heard of (or came to this process)."""
        self._locks = Locks()
        """Held while a trajectory is begun, read back, or ended."""
        self.opened = 0
        self.refused = 0
        """How many were not opened, as their group takes no more."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """How many ended, by status and why: `agent` (its agent said so), `silent`, `never_called` (silent without a
        single step) or `group_deadline`."""
        self.adopted = 0
        """How many were taken over from gateways that have gone."""
        if store is not None:
            self._take_over(store.servers.join(name).adopted)

    def __len__(self) -> int:
        return len(self._live) + len(self._silent_since)

    def attach(self, live: ActiveTrajectory) -> None:
        """Let a rollout's trajectory be reached until it is detached."""
        self._live[live.uid] = live

    def detach(self, live: ActiveTrajectory) -> None:
        live.ended = live.ended or Status.COMPLETED
        self._live.pop(live.uid, None)

    async def open(self, opening: Opening, *, alike: bool = False) -> ActiveTrajectory:
        """Begin a trajectory, on disk; one that is open already under this uid is given back as it is. Raises
        `ApiError` 409 for one that has ended, for a group that takes no more, and, with `alike`, for one that was
        opened otherwise."""
        if self._store is None:
            raise ApiError(404, "this gateway serves a rollout, which opens its trajectories itself")
        uid = opening.uid or uuid.uuid4().hex
        async with self._locks.of(uid):
            found = None if opening.uid is None else await self._find(uid)
            if found is not None:
                must_be_alike(found, opening, strictly=alike)
                return found
            prompt_uid = opening.prompt_uid or uuid.uuid4().hex
            channel = opening.channel or self._channel
            task = task_of(prompt_uid, opening)
            recorder = self._recorder(uid, prompt_uid, channel)
            live = ActiveTrajectory(uid, prompt_uid, channel, task, dict(opening.metadata), recorder)
            live.group_size, live.key = opening.group_size or self._group_size, opening.key
            with self._heard_of_end(live):
                await self._begin(live, joins=opening.prompt_uid is not None)
            self._live[uid] = live
            self._role_engine.engine.join(uid)
            self.opened += 1
            return live

    async def get(self, uid: str, prompt_uid: str | None = None) -> ActiveTrajectory:
        """The open trajectory `uid`; `ApiError` 404 when there is none, 409 when it has ended."""
        live = self._live.get(uid)
        if live is None:
            async with self._locks.of(uid):
                live = await self._find(uid)
        if live is None:
            raise ApiError(404, f"no trajectory '{uid}'; open one with POST /init_trajectory")
        if prompt_uid is not None and prompt_uid != live.prompt_uid:
            raise ApiError(404, f"trajectory '{uid}' is not in the group '{prompt_uid}', but in '{live.prompt_uid}'")
        live.touch()
        return live

    def is_open(self, uid: str) -> bool:
        """Whether the trajectory is under way, as far as memory tells."""
        return uid in self._live or uid in self._silent_since

    async def is_known(self, uid: str) -> bool:
        """Whether there is such a trajectory, open or ended."""
        return uid in self._live or await self._stored(uid) is not None

    async def look_up(self, uid: str) -> Trajectory:
        """The trajectory as it stands, open or ended; `ApiError` 404 when there is none."""
        live = self._live.get(uid)
        if live is not None:
            return live.trajectory(self._tokenizer, Status.RUNNING)
        known = await self._stored(uid)
        if known is None:
            raise ApiError(404, f"no trajectory '{uid}'")
        return known

    async def add(self, live: ActiveTrajectory, step: Step) -> bool:
        """Take a submitted step in; False when it was there already. One that was sampled here takes over reward and
        metadata. Raises `ApiError` 409 when another step has its place."""
        async with self._locks.of(live.uid):
            if live.ended is not None:
                raise ended(live)
            with self._heard_of_end(live):
                live.touch()
                added = await submit(live.recorder, self._store, step)
            if live.recorder.already_ended:
                self.was_ended(live)
            return added

    async def ended_step(self, step: Step) -> bool | None:
        """Of a trajectory that ended: whether it holds `step`. None when it has not ended, or is not there. Raises
        `ApiError` 409 when its agent completed it without this step: then somebody is wrong."""
        if step.trajectory_uid in self._live:
            return None
        known = await self._stored(step.trajectory_uid)
        if known is None or known.status is Status.RUNNING:
            return None
        return holds(known, step)

    async def _stored(self, uid: str) -> Trajectory | None:
        found = None if self._store is None else await asyncio.to_thread(self._store.trajectories.find, uid)
        return None if found is None else found.trajectory

    async def register(self, live: ActiveTrajectory, opening: Opening) -> None:
        """Add to what is known of an open trajectory: its task and metadata, and its channel while it has no steps."""
        if opening.channel not in (None, live.channel) and live.recorder.steps:
            raise ApiError(409, f"trajectory '{live.uid}' has recorded steps in the channel '{live.channel}' already")
        live.metadata |= opening.metadata
        if self._store is None:
            return
        live.task = task_of(live.prompt_uid, replace(opening, task={**told_of(live.task), **opening.task}))
        if opening.channel not in (None, live.channel):
            before = live.channel, live.recorder
            live.channel = opening.channel or live.channel
            live.recorder = self._recorder(live.uid, live.prompt_uid, live.channel)
            try:
                with self._heard_of_end(live):
                    await self._begin(live, joins=True)
            except BaseException:
                live.channel, live.recorder = before
                raise
        else:
            with self._heard_of_end(live):
                await self._store.trajectories.amend(live.uid, task=live.task, session=session_of(live))

    async def close(
        self,
        live: ActiveTrajectory,
        status: Status = Status.COMPLETED,
        *,
        reward: float | None = None,
        rewards: Mapping[str, float] | None = None,
        answer: str | None = None,
        error: str = "",
        why: str = "agent",
        key: str | None = None,
    ) -> Trajectory:
        """End a trajectory, once, with what it is worth (see `ending.scored`). `why` is for counting, `key` the
        idempotency key of who ends it. Raises `ApiError` 409 when it has ended."""
        async with self._locks.of(live.uid):
            if live.ended is not None:
                raise ended(live)
            live.ended, live.why = status, error
            if live.role_engines:
                told = error or ("" if status is Status.COMPLETED else str(status))
                live.said = ReportedEnd(answer, reward, dict(rewards or {}), told)
                return live.trajectory(self._tokenizer, status)
            if key is not None:
                live.metadata[COMPLETION_KEY] = key
            try:
                with self._heard_of_end(live):
                    trajectory = await self._finished(live, status, reward, dict(rewards or {}), answer, error)
            except BaseException:
                if live.uid in self._live:
                    live.ended, live.why = None, ""
                raise
            self._forget(live)
            self.ended[status, why] += 1
            return trajectory

    def was_ended(self, live: ActiveTrajectory) -> None:
        """Somebody has ended the trajectory in the store: the trainer, at the deadline of its group."""
        if self._live.pop(live.uid, None) is not None:
            self._role_engine.engine.leave(live.uid)
            self.ended[Status.TIMED_OUT, "group_deadline"] += 1
            live.ended, live.why = Status.TIMED_OUT, "its group was due"

    @contextmanager
    def _heard_of_end(self, live: ActiveTrajectory) -> Iterator[None]:
        """`ApiError` 409 in place of the store's error that the trajectory has ended."""
        try:
            yield
        except AlreadyEnded:
            self.was_ended(live)
            raise ended(live) from None

    async def _finished(
        self,
        live: ActiveTrajectory,
        status: Status,
        reward: float | None,
        rewards: dict[str, float],
        answer: str | None,
        error: str,
    ) -> Trajectory:
        """The trajectory as it ends, scored, and on disk."""
        assert self._store is not None
        unscored = live.trajectory(self._tokenizer, status)
        trajectory = await scored(unscored, self._reward, reward=reward, rewards=rewards, answer=answer, error=error)
        # What is in the store as it is now need not be written again: only the last step is newly marked.
        changed = trajectory.steps if trajectory.steps != unscored.steps else trajectory.steps[-1:]
        await self._store.trajectories.finish(replace(trajectory, steps=changed), live.channel)
        return trajectory

    async def expire(self) -> int:
        """Close what has been silent for too long; how many that was. Idle ones leave memory."""
        now, late = clock.monotonic(), list[str]()
        for live in list(self._live.values()):
            silent_s = 0.0 if live.in_flight or live.role_engines else now - live.touched
            if silent_s > self._expiry_s:
                late.append(live.uid)
            elif silent_s > IDLE_S:
                self._silent_since[live.uid] = live.touched
                self._forget(live)
        late += [uid for uid, since in self._silent_since.items() if now - since > self._expiry_s]
        closed = 0
        for first in range(0, len(late), CLOSED_AT_ONCE):
            closed += sum(await asyncio.gather(*map(self._expired, late[first : first + CLOSED_AT_ONCE])))
        return closed

    async def _expired(self, uid: str) -> bool:
        """Close a silent trajectory; False when it has ended, or cannot be closed now."""
        try:
            async with self._locks.of(uid):
                held = self._live.get(uid)
                if held is not None and (held.in_flight or clock.monotonic() - held.touched <= self._expiry_s):
                    return False
                live = held or await self._find(uid)
            if live is None:
                return False
            why = "silent" if live.recorder.finished() else "never_called"
            told = f"silent for more than {self._expiry_s:g} s"
            await self.close(live, Status.TIMED_OUT, error=told, why=why)
        except ApiError:
            self._silent_since.pop(uid, None)
            return False
        except MidstreamError as error:
            _log.warning("trajectory %s has been silent for too long, but cannot be closed: %s", uid, error)
            return False
        return True

    async def beat(self) -> None:
        """Tell the store that this gateway lives; take over what those held that do not. Raises `NameTaken`."""
        assert self._store is not None
        before = [live for live in self._live.values() if not live.role_engines and live.ended is None]
        beat = await asyncio.to_thread(self._store.servers.beat)
        oldest_s = max((clock.monotonic() - live.began for live in before), default=0.0)
        if beat.lost:
            _log.warning("this gateway was taken for dead: what it held may be with another one now")
        if beat.lost or (self._group_timeout_s is not None and oldest_s > self._group_timeout_s):
            held = set(await asyncio.to_thread(self._store.trajectories.open_uids))
            for live in before:
                if live.uid in held or live.ended is not None:
                    continue
                found = await self._stored(live.uid)
                if found is not None and found.status is not Status.RUNNING:
                    self.was_ended(live)
                elif beat.lost:
                    self._forget(live)
            self._silent_since = {uid: since for uid, since in self._silent_since.items() if uid in held}
        self._take_over(beat.adopted)

    def _take_over(self, uids: Collection[str]) -> None:
        others = [uid for uid in uids if uid not in self._live]  # after a long pause a gateway adopts its own again
        self.adopted += len(others)
        for uid in others:
            self._silent_since[uid] = clock.monotonic()

    async def _find(self, uid: str) -> ActiveTrajectory | None:
        """The open trajectory `uid`, read back from the store if need be; `ApiError` 409 when it has ended, 503 when
        another gateway holds it."""
        if uid in self._live:
            return self._live[uid]
        if self._store is None or (found := await asyncio.to_thread(self._store.trajectories.find, uid)) is None:
            return None
        known, session = found.trajectory, found.session or {}
        if known.status is not Status.RUNNING:
            raise over(uid, known.status, known.error)
        if found.server not in (None, self._store.servers.own):
            name = await asyncio.to_thread(self._store.servers.name_of, found.server)
            raise elsewhere(uid, name)
        recorder = self._recorder(uid, known.prompt_uid, found.channel)
        await asyncio.to_thread(recorder.restore, known.steps, self._role_engine)
        live = ActiveTrajectory(
            uid, known.prompt_uid, found.channel, known.task, dict(session.get("metadata", {})), recorder
        )
        live.group_size, live.key = session.get("group_size", 1), session.get("key")
        self._live[uid] = live
        self._silent_since.pop(uid, None)
        self._role_engine.engine.join(uid)
        return live

    def _recorder(self, uid: str, prompt_uid: str, channel: str) -> Recorder:
        return Recorder(
            uid,
            prompt_uid,
            seed=uuid.uuid4().int >> 65,
            store=self._store,
            channel=channel,
            prefix_ignore=self._prefix_ignore,
        )

    async def _begin(self, live: ActiveTrajectory, *, joins: bool) -> None:
        assert self._store is not None
        try:
            await self._store.trajectories.open(
                live.uid,
                live.prompt_uid,
                live.task,
                live.channel,
                group_size=live.group_size,
                deadline=None if self._group_timeout_s is None else clock.time() + self._group_timeout_s,
                session=session_of(live),
                joins=joins,
            )
        except GroupClosed as error:
            self.refused += 1
            raise ApiError(409, f"{error.message}; {error.hint}", code="group_closed", param="prompt_uid") from None

    def _forget(self, live: ActiveTrajectory) -> None:
        self._live.pop(live.uid, None)
        self._role_engine.engine.leave(live.uid)
