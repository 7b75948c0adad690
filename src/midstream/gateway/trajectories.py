"""The trajectories under way: opened, found again after a restart, touched, and closed once.

What one has said is in the store; here is what it needs to go on. One that has been idle for a while is forgotten and
read back when its agent calls again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.core.errors import AlreadyEnded
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message, Status, Step, Task, Trajectory
from midstream.gateway.answer import answer_of
from midstream.gateway.errors import ApiError
from midstream.record.recorder import Recorder, Voice
from midstream.record.store import Store
from midstream.rewards import RewardFunction

IDLE_S = 120.0
"""After this long without a call a trajectory's steps leave memory; they are in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a caller says of a trajectory when it begins. `task` may hold `id`, `prompt`, `answer` and `kind`;
    `metadata` is kept with it."""

    uid: str | None = None
    prompt_uid: str | None = None
    channel: str | None = None
    group_size: int | None = None
    task: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Said:
    """What an agent said of its trajectory on completing it."""

    answer: str | None
    reward: float | None
    rewards: Mapping[str, float]
    error: str


@dataclass(slots=True)
class Live:
    """A trajectory under way. `prompt_uid` groups it with others.

    One that a rollout makes is attached: `voices` may be asked for by role, `sampling` holds whatever the agent asks
    for, and `said` is for the rollout to finish it with."""

    uid: str
    prompt_uid: str
    channel: str
    task: Task
    metadata: dict[str, Any]
    recorder: Recorder
    group_size: int = 1
    touched: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    ended: Status | None = None
    why: str = ""
    voices: Mapping[str, Voice] = field(default_factory=dict[str, Voice])
    sampling: Mapping[str, SamplingParams] = field(default_factory=dict[str, SamplingParams])
    said: Said | None = None

    def touch(self) -> None:
        self.touched = time.monotonic()

    def recorded(self, key: str) -> dict[int, Step]:
        """The steps made for an idempotency key, by their place among its choices."""
        steps = self.recorder.finished()
        return {s.metadata.get("choice", 0): s for s in steps if s.metadata.get("idempotency_key") == key}


class Trajectories:
    """Every trajectory that is open, by its uid. Without a store there are those that a rollout attaches, and no
    others."""

    def __init__(
        self,
        store: Store | None,
        voice: Voice,
        *,
        channel: str,
        group_size: int,
        group_timeout_s: float | None,
        expiry_s: float,
        reward: RewardFunction | None,
    ) -> None:
        self._store, self._voice, self._reward = store, voice, reward
        self._channel, self._group_size = channel, group_size
        self._group_timeout_s, self._expiry_s = group_timeout_s, expiry_s
        self._live: dict[str, Live] = {}
        self._silent_since: dict[str, float] = {}
        """When those that are open, but not in memory, were last heard of (or this process began)."""
        self._locks: dict[str, asyncio.Lock] = {}
        self.opened = 0
        self.ended: dict[str, int] = {}
        for recorded in store.open_trajectories() if store is not None else ():
            self._silent_since[recorded.trajectory.uid] = time.monotonic()

    def __len__(self) -> int:
        return len(self._live) + len(self._silent_since)

    def attach(self, live: Live) -> None:
        """Let a rollout's trajectory be reached until it is detached."""
        self._live[live.uid] = live

    def detach(self, live: Live) -> None:
        live.ended = live.ended or Status.COMPLETED
        self._live.pop(live.uid, None)

    async def open(self, opening: Opening) -> Live:
        """Begin a trajectory, on disk; one that is open already under this uid is given back as it is. Raises
        `ApiError` 409 for one that has ended."""
        if self._store is None:
            raise ApiError(404, "this gateway serves a rollout, which opens its trajectories itself")
        uid = opening.uid or uuid.uuid4().hex
        async with self._locks.setdefault(uid, asyncio.Lock()):
            try:
                found = await self._find(uid)
            finally:
                self._locks.pop(uid, None)
            if found is not None:
                if opening.prompt_uid not in (None, found.prompt_uid):
                    raise ApiError(409, f"trajectory '{uid}' is open already, in the group '{found.prompt_uid}'")
                return found
            prompt_uid = opening.prompt_uid or uuid.uuid4().hex
            channel = opening.channel or self._channel
            task = _task(prompt_uid, opening)
            recorder = self._recorder(uid, prompt_uid, channel)
            live = Live(uid, prompt_uid, channel, task, dict(opening.metadata), recorder)
            live.group_size = opening.group_size or self._group_size
            self._begin(live)
            self._live[uid] = live
            await self._store.acknowledge()
            self._voice.engine.join(uid)
            self.opened += 1
            return live

    async def get(self, uid: str, prompt_uid: str | None = None) -> Live:
        """The open trajectory `uid`; `ApiError` 404 when there is none, 409 when it has ended."""
        live = self._live.get(uid)
        if live is None:
            async with self._locks.setdefault(uid, asyncio.Lock()):
                try:
                    live = await self._find(uid)
                finally:
                    self._locks.pop(uid, None)
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
            return self._trajectory(live, Status.RUNNING)
        known = await self._stored(uid)
        if known is None:
            raise ApiError(404, f"no trajectory '{uid}'")
        return known

    async def add(self, live: Live, step: Step) -> bool:
        """Take a submitted step in; False when it was there already. One that was sampled here takes over reward and
        metadata. Raises `ApiError` 409 when another step has its place."""
        recorder = live.recorder
        tokens = (step.prompt_ids, step.response_ids)
        same = next((known for known in recorder.finished() if (known.prompt_ids, known.response_ids) == tokens), None)
        if same is not None:
            if same.metadata.get("submitted"):
                return False
            metadata = {**same.metadata, **step.metadata, "submitted": True}
            recorder.steps[same.step_index] = replace(same, reward=step.reward, metadata=metadata)
            if self._store is not None:
                self._store.update_step(recorder.steps[same.step_index])
                await self._store.acknowledge()
            return True
        if any(known.step_index == step.step_index for known in recorder.finished()):
            raise ApiError(409, f"trajectory '{live.uid}' has another step {step.step_index} already")
        live.touch()
        await recorder.submit(replace(step, metadata={**step.metadata, "submitted": True}))
        return True

    async def ended_step(self, step: Step) -> bool | None:
        """Of a trajectory that ended: whether it holds `step`. None when it has not ended, or is not there. Raises
        `ApiError` 409 when its agent completed it without this step: then somebody is wrong."""
        if step.trajectory_uid in self._live:
            return None
        known = await self._stored(step.trajectory_uid)
        if known is None or known.status is Status.RUNNING:
            return None
        tokens = (step.prompt_ids, step.response_ids)
        if any((own.prompt_ids, own.response_ids) == tokens for own in known.steps):
            return True
        if known.status is Status.COMPLETED or any(own.step_index == step.step_index for own in known.steps):
            raise _over(known.uid, known.status, known.error)
        return False

    async def _stored(self, uid: str) -> Trajectory | None:
        found = None if self._store is None else await asyncio.to_thread(self._store.find, uid)
        return None if found is None else found.trajectory

    async def register(self, live: Live, opening: Opening) -> None:
        """Add to what is known of an open trajectory: its task and metadata, and its channel while it has no steps."""
        if opening.channel not in (None, live.channel) and live.recorder.steps:
            raise ApiError(409, f"trajectory '{live.uid}' has recorded steps in the channel '{live.channel}' already")
        live.metadata |= opening.metadata
        if self._store is None:
            return
        live.task = _task(live.prompt_uid, replace(opening, task={**_told(live.task), **opening.task}))
        if opening.channel not in (None, live.channel):
            live.channel = opening.channel or live.channel
            live.recorder = self._recorder(live.uid, live.prompt_uid, live.channel)
            self._begin(live)
        else:
            self._store.amend(live.uid, task=live.task, session=_session(live))
        await self._store.acknowledge()

    async def close(
        self,
        live: Live,
        status: Status = Status.COMPLETED,
        *,
        reward: float | None = None,
        rewards: Mapping[str, float] | None = None,
        answer: str | None = None,
        error: str = "",
    ) -> Trajectory:
        """End a trajectory, once. Its reward is the one given, or the sum of its steps' own, or what the gateway's
        reward function says; without any, the trainer scores it."""
        if live.ended is not None:
            raise ended(live)
        live.ended, live.why = status, error
        if live.voices:
            why = error or ("" if status is Status.COMPLETED else str(status))
            live.said = Said(answer, reward, dict(rewards or {}), why)
            return self._trajectory(live, status)
        trajectory = self._trajectory(live, status)
        by_step = [step.reward for step in trajectory.steps if step.reward is not None]
        if reward is None and by_step:
            reward = sum(by_step)
        trajectory = replace(
            trajectory,
            answer=trajectory.answer if answer is None else answer,
            error=error,
            rewards={**({} if reward is None else {"given": reward}), **(rewards or {})},
            reward=reward,
        )
        if reward is None and self._reward is not None and status is Status.COMPLETED:
            trajectory = await self._reward.score(trajectory)
        assert self._store is not None
        try:
            await self._store.finish(trajectory, live.channel)
        except AlreadyEnded as already:
            raise ApiError(409, str(already)) from None
        except BaseException:
            live.ended = None
            raise
        self._forget(live)
        self.ended[status] = self.ended.get(status, 0) + 1
        return trajectory

    async def expire(self) -> int:
        """Close what has been silent for too long; how many that was. Idle ones leave memory."""
        now, late = time.monotonic(), 0
        for live in list(self._live.values()):
            if live.in_flight:
                continue
            if now - live.touched > self._expiry_s:
                late += await self._expired(live)
            elif now - live.touched > IDLE_S:
                self._silent_since[live.uid] = live.touched
                self._forget(live)
        for uid, since in list(self._silent_since.items()):
            if now - since > self._expiry_s:
                live = await self._find(uid)
                late += await self._expired(live) if live is not None else 0
                self._silent_since.pop(uid, None)
        return late

    async def _expired(self, live: Live) -> bool:
        try:
            await self.close(live, Status.TIMED_OUT, error=f"silent for more than {self._expiry_s:g} s")
        except ApiError:
            return False
        return True

    async def _find(self, uid: str) -> Live | None:
        """The open trajectory `uid`, read back from the store if need be; `ApiError` 409 when it has ended."""
        if uid in self._live:
            return self._live[uid]
        found = None if self._store is None else await asyncio.to_thread(self._store.find, uid)
        if found is None:
            return None
        known, session = found.trajectory, found.session or {}
        if known.status is not Status.RUNNING:
            raise _over(uid, known.status, known.error)
        recorder = self._recorder(uid, known.prompt_uid, found.channel)
        await asyncio.to_thread(recorder.restore, known.steps, self._voice)
        live = Live(uid, known.prompt_uid, found.channel, known.task, dict(session.get("metadata", {})), recorder)
        live.group_size = session.get("group_size", 1)
        self._live[uid] = live
        self._silent_since.pop(uid, None)
        self._voice.engine.join(uid)
        return live

    def _recorder(self, uid: str, prompt_uid: str, channel: str) -> Recorder:
        return Recorder(uid, prompt_uid, seed=uuid.uuid4().int >> 65, store=self._store, channel=channel)

    def _begin(self, live: Live) -> None:
        assert self._store is not None
        self._store.begin(
            live.uid,
            live.prompt_uid,
            live.task,
            live.channel,
            group_size=live.group_size,
            deadline=None if self._group_timeout_s is None else time.time() + self._group_timeout_s,
            session=_session(live),
        )

    def _forget(self, live: Live) -> None:
        self._live.pop(live.uid, None)
        self._voice.engine.leave(live.uid)

    def _trajectory(self, live: Live, status: Status) -> Trajectory:
        steps = live.recorder.recorded()
        assert self._voice.tokenizer is not None
        return Trajectory(
            uid=live.uid,
            prompt_uid=live.prompt_uid,
            task=live.task,
            steps=steps,
            answer=answer_of(steps[-1], self._voice.tokenizer).reply.content if steps else None,
            turns=len(steps),
            status=status,
            metadata=live.metadata,
        )


def ended(live: Live) -> ApiError:
    return _over(live.uid, live.ended or Status.COMPLETED, live.why)


def _over(uid: str, status: Status, why: str) -> ApiError:
    because = f": {why}" if why else ""
    return ApiError(409, f"trajectory '{uid}' has ended ({status}{because}); open another one", code="trajectory_ended")


def _session(live: Live) -> dict[str, Any]:
    """What a trajectory needs to go on after a restart."""
    return {"metadata": live.metadata, "group_size": live.group_size}


def _told(task: Task) -> dict[str, Any]:
    return {"id": task.id, "prompt": task.prompt, "answer": task.answer, "kind": task.kind}


def _task(prompt_uid: str, opening: Opening) -> Task:
    given = dict(opening.task)
    prompt = given.pop("prompt", "")
    messages: str | tuple[Message, ...] = prompt if isinstance(prompt, str) else tuple(prompt)
    kind, answer, task_id = given.pop("kind", "default"), given.pop("answer", None), given.pop("id", prompt_uid)
    return Task(id=str(task_id), prompt=messages, answer=answer, kind=str(kind), metadata={**opening.metadata, **given})
