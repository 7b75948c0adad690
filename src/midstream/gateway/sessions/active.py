"""A trajectory under way, as the gateway holds it in memory, and what callers say of one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from midstream.core import clock
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason, Message, Status, Step, Task, Trajectory
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.limits.retries import Retries
from midstream.gateway.sessions.answer import answer_of
from midstream.record.recorder import Recorder, RoleEngine
from midstream.store.servers import BEAT_S, DEAD_AFTER_S


class Locks:
    """A lock for each name. Nothing is kept of a name that nobody holds or waits for."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a caller says of a trajectory when it begins. `task` may hold `id`, `prompt`, `answer` and `kind`;
    `metadata` is kept with it; `key` names the key of the gateway that it is opened with."""

    uid: str | None = None
    prompt_uid: str | None = None
    channel: str | None = None
    group_size: int | None = None
    task: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    key: str | None = None


@dataclass(frozen=True, slots=True)
class ReportedEnd:
    """What an agent said of its trajectory on completing it."""

    answer: str | None
    reward: float | None
    rewards: Mapping[str, float]
    error: str


@dataclass(slots=True)
class ActiveTrajectory:
    """A trajectory under way. `prompt_uid` groups it with others, and the limits of `key` hold for its calls.

    A rollout attaches its own: the agent may ask for `role_engines` by role, `sampling` overrides what the agent asks
    for, and `said` is what the rollout finishes it with."""

    uid: str
    prompt_uid: str
    channel: str
    task: Task
    metadata: dict[str, Any]
    recorder: Recorder
    group_size: int = 1
    key: str | None = None
    began: float = field(default_factory=clock.monotonic)
    touched: float = field(default_factory=clock.monotonic)
    in_flight: int = 0
    ended: Status | None = None
    why: str = ""
    role_engines: Mapping[str, RoleEngine] = field(default_factory=dict[str, RoleEngine])
    sampling: Mapping[str, SamplingParams] = field(default_factory=dict[str, SamplingParams])
    said: ReportedEnd | None = None
    retries: Retries = field(default_factory=Retries)
    answering: Locks = field(default_factory=Locks)
    """Held, by idempotency key, while its answers are made: who asks again meanwhile waits for them."""

    def trajectory(self, tokenizer: ChatTokenizer, status: Status) -> Trajectory:
        """What is recorded so far, answered by the last step that was not interrupted, as it would be with `status`."""
        steps = self.recorder.recorded()
        whole = [step for step in steps if step.finish_reason != FinishReason.INTERRUPTED]
        return Trajectory(
            uid=self.uid,
            prompt_uid=self.prompt_uid,
            task=self.task,
            steps=steps,
            answer=answer_of(whole[-1], tokenizer).reply.content if whole else None,
            turns=len(steps),
            status=status,
            metadata=self.metadata,
        )

    def touch(self) -> None:
        self.touched = clock.monotonic()

    def recorded(self, key: str) -> dict[int, Step]:
        """The steps made for an idempotency key, by their place among its choices."""
        steps = [step for step in self.recorder.finished() if step.metadata.get("idempotency_key") == key]
        # What a client did not hear to the end is no answer.
        return {s.metadata.get("choice", 0): s for s in steps if s.finish_reason != FinishReason.INTERRUPTED}


def ended(live: ActiveTrajectory) -> ApiError:
    return over(live.uid, live.ended or Status.COMPLETED, live.why)


def over(uid: str, status: Status, why: str) -> ApiError:
    because = f": {why}" if why else ""
    return ApiError(409, f"trajectory '{uid}' has ended ({status}{because}); open another one", code="trajectory_ended")


def elsewhere(uid: str, name: str | None) -> ApiError:
    """`uid` is with another gateway; one without a name has gone, and this one is about to take over."""
    where = f"the gateway '{name}', which shares this store" if name else "a gateway that has gone"
    return ApiError(
        503,
        f"trajectory '{uid}' is with {where}; send its calls there. What a gateway held that is not heard of for "
        f"{DEAD_AFTER_S:g} s goes on here",
        code="held_elsewhere",
        retry_after_s=BEAT_S,
    )


def session_of(live: ActiveTrajectory) -> dict[str, Any]:
    """What a trajectory needs to go on after a restart."""
    return {"metadata": live.metadata, "group_size": live.group_size, "key": live.key}


def told_of(task: Task) -> dict[str, Any]:
    """The `task` of an opening that makes this one."""
    own = {"id": task.id, "prompt": task.prompt, "answer": task.answer, "kind": task.kind}
    return {**task.metadata, **own}


def task_of(prompt_uid: str, opening: Opening) -> Task:
    given = dict(opening.task)
    prompt = given.pop("prompt", "")
    messages: str | tuple[Message, ...] = prompt if isinstance(prompt, str) else tuple(prompt)
    kind, answer, task_id = given.pop("kind", "default"), given.pop("answer", None), given.pop("id", prompt_uid)
    return Task(id=str(task_id), prompt=messages, answer=answer, kind=str(kind), metadata={**opening.metadata, **given})


def must_be_alike(live: ActiveTrajectory, opening: Opening, *, strictly: bool) -> None:
    """`ApiError` 409 when a trajectory that is open already is in another group; `strictly`, when anything that
    `opening` says of it is otherwise."""
    given: dict[str, Any] = {"prompt_uid": opening.prompt_uid}
    known: dict[str, Any] = {"prompt_uid": live.prompt_uid}
    if strictly:
        given |= {"channel": opening.channel, "group_size": opening.group_size, **opening.task}
        known |= {**told_of(live.task), "channel": live.channel, "group_size": live.group_size}
    for name, value in given.items():
        own = known.get(name)
        if value is not None and value != (list(own) if isinstance(own, tuple) else own):
            raise ApiError(409, f"trajectory '{live.uid}' is open already, with another {name}: {own}", param=name)
